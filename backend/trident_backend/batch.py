"""Packs a scheduled step into the arrays an engine computes.

Owns the packing. Never decides what is computed, never changes a sequence.
"""

from __future__ import annotations

import numpy as np

from trident_backend.engine.protocol import StepBatch
from trident_backend.steps import SchedulerOutput


def pack(output: SchedulerOutput, block_size: int) -> StepBatch:
    """All chunks of a step on one axis; see `StepBatch` for shapes."""
    token_ids: list[int] = []
    block_indices: list[int] = []
    num_blocks: list[int] = []
    past_lens: list[int] = []
    new_lens: list[int] = []
    row_counts: list[int] = []
    for sequence, num_new_tokens, completes, draft_ids in output.chunks:
        start = sequence.num_computed_tokens
        if num_new_tokens == 1:
            token_ids.append(sequence.token_ids[start])
        else:
            token_ids.extend(sequence.token_ids[start : start + num_new_tokens])
        token_ids.extend(draft_ids)
        new_len = num_new_tokens + len(draft_ids)
        needed = -(-(start + new_len) // block_size)
        block_indices.extend(sequence.block_table[:needed])
        num_blocks.append(needed)
        past_lens.append(start)
        new_lens.append(new_len)
        row_counts.append(1 + len(draft_ids) if completes else 0)
    past, new = np.array(past_lens, np.int32), np.array(new_lens, np.int32)
    begins = _offsets(new)
    return StepBatch(
        token_ids=np.array(token_ids, np.int32),
        position_ids=np.arange(begins[-1], dtype=np.int32) + np.repeat(past - begins[:-1], new),
        past_lens=past,
        subsequence_begins=begins,
        block_indices=np.array(block_indices, np.int32),
        block_indices_begins=_offsets(np.array(num_blocks, np.int32)),
        max_context_len=int((past + new).max()),
        logit_rows=_last_rows(begins[1:], np.array(row_counts, np.int32)),
    )


def _offsets(lengths: np.ndarray[tuple[int], np.dtype[np.int32]]) -> np.ndarray[tuple[int], np.dtype[np.int32]]:
    offsets = np.zeros(len(lengths) + 1, np.int32)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


def _last_rows(
    ends: np.ndarray[tuple[int], np.dtype[np.int32]], counts: np.ndarray[tuple[int], np.dtype[np.int32]]
) -> np.ndarray[tuple[int], np.dtype[np.int32]]:
    """The last `counts[i]` places before each `ends[i]`, in order."""
    firsts = np.repeat(ends - counts - _offsets(counts)[:-1], counts)
    return (firsts + np.arange(len(firsts), dtype=np.int32)).astype(np.int32)
