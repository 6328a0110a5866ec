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
    first_rows: list[tuple[int, int]] = []
    for sequence, num_new_tokens, completes, draft_ids, num_scored in output.chunks:
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
        # The scored rows begin at the chunk's first token; whatever else is wanted ends at its last.
        first_rows.append((len(token_ids) - new_len, num_scored))
        first_rows.append((len(token_ids) - 1 - len(draft_ids), 1 + len(draft_ids) if completes else 0))
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
        logit_rows=_runs(first_rows),
        block_copies=np.array(output.block_copies, np.int32).reshape(-1, 3),
    )


def _offsets(lengths: np.ndarray[tuple[int], np.dtype[np.int32]]) -> np.ndarray[tuple[int], np.dtype[np.int32]]:
    offsets = np.zeros(len(lengths) + 1, np.int32)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


def _runs(runs: list[tuple[int, int]]) -> np.ndarray[tuple[int], np.dtype[np.int32]]:
    """All runs of places, each given by its first and its length, after one another."""
    firsts, lengths = np.array(runs, np.int32).T
    shifts = np.repeat(firsts - _offsets(lengths)[:-1], lengths)
    return (shifts + np.arange(len(shifts), dtype=np.int32)).astype(np.int32)
