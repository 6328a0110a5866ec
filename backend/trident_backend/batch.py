"""Packs a scheduled step into the arrays an engine computes.

Owns the packing. Never decides what is computed, never changes a sequence.
"""

from __future__ import annotations

import numpy as np

from trident_backend.engine.protocol import StepBatch
from trident_backend.scheduler import SchedulerOutput


def pack(output: SchedulerOutput, block_size: int) -> StepBatch:
    """All chunks of a step on one axis; see `StepBatch` for shapes."""
    token_ids: list[int] = []
    block_indices: list[int] = []
    num_blocks: list[int] = []
    for chunk in output.chunks:
        sequence = chunk.sequence
        start = sequence.num_computed_tokens
        end = start + chunk.num_new_tokens
        if chunk.num_new_tokens == 1:
            token_ids.append(sequence.token_ids[start])
        else:
            token_ids.extend(sequence.token_ids[start:end])
        needed = -(-end // block_size)
        block_indices.extend(sequence.block_table[:needed])
        num_blocks.append(needed)
    past_lens = np.array([chunk.sequence.num_computed_tokens for chunk in output.chunks], np.int32)
    new_lens = np.array([chunk.num_new_tokens for chunk in output.chunks], np.int32)
    completes = np.array([chunk.completes for chunk in output.chunks], bool)
    begins = _offsets(new_lens)
    return StepBatch(
        token_ids=np.array(token_ids, np.int32),
        position_ids=np.arange(begins[-1], dtype=np.int32) + np.repeat(past_lens - begins[:-1], new_lens),
        past_lens=past_lens,
        subsequence_begins=begins,
        block_indices=np.array(block_indices, np.int32),
        block_indices_begins=_offsets(np.array(num_blocks, np.int32)),
        max_context_len=int((past_lens + new_lens).max()),
        logit_rows=begins[1:][completes] - 1,
    )


def _offsets(lengths: np.ndarray[tuple[int], np.dtype[np.int32]]) -> np.ndarray[tuple[int], np.dtype[np.int32]]:
    offsets = np.zeros(len(lengths) + 1, np.int32)
    np.cumsum(lengths, out=offsets[1:])
    return offsets
