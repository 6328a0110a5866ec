"""Packs a scheduled step into the arrays an engine computes.

Owns the packing. Never decides what is computed, never changes a sequence.
"""

from __future__ import annotations

from array import array

import numpy as np

from trident_backend.engine.protocol import Int32Array, StepBatch
from trident_backend.sequences.steps import SchedulerOutput


def pack(output: SchedulerOutput, block_size: int) -> StepBatch:
    """Pack all chunks of a step on one axis.

    Args:
        output: with at least one chunk.
        block_size: tokens in a KV block.
    """
    token_ids: list[int] = []
    tables: list[array[int]] = []
    num_blocks: list[int] = []
    past_lens: list[int] = []
    new_lens: list[int] = []
    first_rows: list[int] = []
    num_rows: list[int] = []
    end = 0
    for sequence, num_new_tokens, completes, draft_ids, num_scored in output.chunks:
        start = sequence.num_computed_tokens
        if num_new_tokens == 1 and not draft_ids:
            token_ids.append(sequence.token_ids[start])
            new_len = 1
        else:
            token_ids += sequence.token_ids[start : start + num_new_tokens]
            token_ids += draft_ids
            new_len = num_new_tokens + len(draft_ids)
        needed = -(-(start + new_len) // block_size)
        table = sequence.block_table
        tables.append(table if len(table) == needed else table[:needed])
        num_blocks.append(needed)
        past_lens.append(start)
        new_lens.append(new_len)
        # The scored rows begin at the chunk's first token; those that choose end at its last.
        if num_scored:
            first_rows.append(end)
            num_rows.append(num_scored)
        end += new_len
        if completes:
            first_rows.append(end - 1 - len(draft_ids))
            num_rows.append(1 + len(draft_ids))
    past, new = np.array(past_lens, np.int32), np.array(new_lens, np.int32)
    begins = _offsets(new)
    return StepBatch(
        token_ids=np.array(token_ids, np.int32),
        position_ids=np.arange(begins[-1], dtype=np.int32) + np.repeat(past - begins[:-1], new),
        past_lens=past,
        subsequence_begins=begins,
        # The tables' bytes one after another: however long they are, no number in them is read.
        block_indices=np.frombuffer(bytearray().join(tables), np.int32),
        block_indices_begins=_offsets(np.array(num_blocks, np.int32)),
        max_context_len=int((past + new).max()),
        logit_rows=_runs(np.array(first_rows, np.int32), np.array(num_rows, np.int32)),
        block_copies=np.array(output.block_copies, np.int32).reshape(-1, 3),
    )


def _offsets(lengths: Int32Array) -> Int32Array:
    """Return where runs of these lengths begin that follow one another, and where the last ends."""
    offsets = np.zeros(len(lengths) + 1, np.int32)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


def _runs(firsts: Int32Array, lengths: Int32Array) -> Int32Array:
    """Return the indices of all runs, one run after another, each given by its first index and its length."""
    indices: Int32Array = np.repeat(firsts - _offsets(lengths)[:-1], lengths)
    indices += np.arange(len(indices), dtype=np.int32)
    return indices
