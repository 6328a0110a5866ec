"""How a step becomes calls of the network: one for all sequences with one token, and one for each longer chunk.

Owns the split, the inputs of each call and where its logits lie. Pure: no device, no compiler.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from trident_backend.engine.protocol import Int32Array, StepBatch

#: The network's inputs beside the caches, in the order in which they lie in the upload.
INPUTS = ("token_ids", "position_ids", "past_lens", "context_lens", "logit_rows")


@dataclass(frozen=True)
class NetworkCall:
    """One run of the network: B sequences of Q tokens each, in neighbouring slots, and N rows of logits.

    Args:
        inputs: int32, by name: `token_ids` and `position_ids` `[B, Q]`, `past_lens` and `context_lens` `[B]`,
            `logit_rows` `[N]`, places on the flattened axis B * Q; at least one, as a network has no empty output.
        first_slot: the slot of the first sequence.
        first_row: where the first of the rows lies in the logits' buffer.
        num_rows: how many of them are wanted; the others are written, and overwritten by the next call.
    """

    inputs: dict[str, Int32Array]
    first_slot: int
    first_row: int
    num_rows: int

    @property
    def shape(self) -> tuple[int, int]:
        """B and Q."""
        num_seqs, num_tokens = self.inputs["token_ids"].shape
        return num_seqs, num_tokens


@dataclass(frozen=True)
class StepCalls:
    """The calls of one step, in their order.

    Args:
        generation: of all sequences with one token, if there are any.
        contexts: of each other.
        buffer_rows: int32 `[R]`, where each row that the step wants lies in the logits' buffer.
    """

    generation: NetworkCall | None
    contexts: tuple[NetworkCall, ...]
    buffer_rows: Int32Array


def split(batch: StepBatch, slot_len: int, padded: Callable[[int], int]) -> StepCalls:
    """Divide a step.

    Args:
        batch: sequences whose block table is one slot; no row of logits is wanted twice.
        slot_len: positions in a slot; the last is scratch.
        padded: the number of slots that a generation call takes where so many would do.
    """
    lens = np.diff(batch.subsequence_begins)
    assert (np.diff(batch.block_indices_begins) == 1).all(), "a sequence has one slot"
    owners = np.searchsorted(batch.subsequence_begins, batch.logit_rows, side="right") - 1
    buffer_rows = np.empty(len(owners), np.int32)
    generation = None
    num_rows = 0
    if (lens == 1).any():
        mine = (lens == 1)[owners]
        generation = _generation(batch, lens == 1, owners[mine], slot_len, padded)
        num_rows = generation.num_rows
        buffer_rows[mine] = np.arange(num_rows)
    contexts = []
    for place in np.flatnonzero(lens > 1):
        mine = owners == place
        contexts.append(_context(batch, int(place), batch.logit_rows[mine], num_rows))
        buffer_rows[mine] = num_rows + np.arange(contexts[-1].num_rows)
        num_rows += contexts[-1].num_rows
    return StepCalls(generation, tuple(contexts), buffer_rows)


def idle_inputs(num_seqs: int, slot_len: int) -> dict[str, Int32Array]:
    """A generation call that computes nothing: each slot's write goes to its scratch, which nobody reads."""
    return {
        "token_ids": np.zeros((num_seqs, 1), np.int32),
        "position_ids": np.zeros((num_seqs, 1), np.int32),
        "past_lens": np.full(num_seqs, slot_len - 1, np.int32),
        "context_lens": np.ones(num_seqs, np.int32),
        "logit_rows": np.zeros(num_seqs, np.int32),
    }


def _generation(
    batch: StepBatch,
    single: npt.NDArray[np.bool_],
    owners: npt.NDArray[np.intp],
    slot_len: int,
    padded: Callable[[int], int],
) -> NetworkCall:
    slots = batch.block_indices
    mine, places = slots[single], batch.subsequence_begins[:-1][single]
    inputs = idle_inputs(padded(int(mine.max()) + 1), slot_len)
    inputs["token_ids"][mine, 0] = batch.token_ids[places]
    inputs["position_ids"][mine, 0] = batch.position_ids[places]
    inputs["past_lens"][mine] = batch.past_lens[single]
    inputs["context_lens"][mine] = batch.past_lens[single] + 1
    inputs["logit_rows"][: len(owners)] = slots[owners]
    return NetworkCall(inputs, 0, 0, len(owners))


def _context(batch: StepBatch, place: int, rows: Int32Array, first_row: int) -> NetworkCall:
    begin, end = (int(bound) for bound in batch.subsequence_begins[place : place + 2])
    past_len = batch.past_lens[place : place + 1]
    inputs = {
        "token_ids": batch.token_ids[None, begin:end],
        "position_ids": batch.position_ids[None, begin:end],
        "past_lens": past_len,
        "context_lens": past_len + np.int32(end - begin),
        "logit_rows": rows - np.int32(begin) if len(rows) else np.zeros(1, np.int32),
    }
    return NetworkCall(inputs, int(batch.block_indices[place]), first_row, len(rows))
