"""Splits a step into calls of the network.

All sequences with one token share a decode call; each longer chunk has a prefill call.

Owns the split, the inputs of each call and where its logits lie. Never touches a device or a compiler.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from trident_backend.engine.protocol import Int32Array, StepBatch
from trident_backend.engine.tensorrt.names import CONTEXT_LENS, LOGIT_ROWS, PAST_LENS, POSITION_IDS, TOKEN_IDS


@dataclass(frozen=True)
class NetworkCall:
    """One run of the network: B sequences of Q tokens each, in neighbouring slots, and N rows of logits.

    Args:
        inputs: int32, by name: `token_ids` and `position_ids` `[B, Q]`, `past_lens` and `context_lens` `[B]`,
            `logit_rows` `[N]`, indices on the flattened axis B * Q; at least one, as a network has no empty output.
        first_slot: the slot of the first sequence.
        first_row: index of the first of the rows in the logits' buffer.
        num_rows: how many of the rows are wanted; the others are written, and overwritten by the next call.
    """

    inputs: dict[str, Int32Array]
    first_slot: int
    first_row: int
    num_rows: int

    @property
    def shape(self) -> tuple[int, int]:
        """B and Q."""
        num_seqs, num_tokens = self.inputs[TOKEN_IDS].shape
        return num_seqs, num_tokens


@dataclass(frozen=True)
class StepCalls:
    """The calls of one step, in order.

    Args:
        decode: the call of all sequences with one token, if there are any.
        prefills: a call for each other sequence.
        buffer_rows: int32 `[R]`, the index in the logits' buffer of each row that the step wants.
    """

    decode: NetworkCall | None
    prefills: tuple[NetworkCall, ...]
    buffer_rows: Int32Array


def split(batch: StepBatch, slot_len: int, padded: Callable[[int], int]) -> StepCalls:
    """Divide a step into calls.

    Args:
        batch: sequences whose block table is one slot; no row of logits is wanted twice.
        slot_len: positions in a slot; the last is scratch.
        padded: the number of slots that a decode call takes where so many would do.
    """
    lens = np.diff(batch.subsequence_begins)
    assert (np.diff(batch.block_indices_begins) == 1).all(), "a sequence has one slot"
    owners = np.searchsorted(batch.subsequence_begins, batch.logit_rows, side="right") - 1
    buffer_rows = np.empty(len(owners), np.int32)
    decode = None
    num_rows = 0
    if (lens == 1).any():
        mine = (lens == 1)[owners]
        decode = _decode(batch, lens == 1, owners[mine], slot_len, padded)
        num_rows = decode.num_rows
        buffer_rows[mine] = np.arange(num_rows)
    prefills = []
    for index in np.flatnonzero(lens > 1):
        mine = owners == index
        prefills.append(_prefill(batch, int(index), batch.logit_rows[mine], num_rows))
        buffer_rows[mine] = num_rows + np.arange(prefills[-1].num_rows)
        num_rows += prefills[-1].num_rows
    return StepCalls(decode, tuple(prefills), buffer_rows)


def idle_inputs(num_seqs: int, slot_len: int) -> dict[str, Int32Array]:
    """Return the inputs of a decode call that computes nothing: each slot's write goes to its scratch position."""
    return {
        TOKEN_IDS: np.zeros((num_seqs, 1), np.int32),
        POSITION_IDS: np.zeros((num_seqs, 1), np.int32),
        PAST_LENS: np.full(num_seqs, slot_len - 1, np.int32),
        CONTEXT_LENS: np.ones(num_seqs, np.int32),
        LOGIT_ROWS: np.zeros(num_seqs, np.int32),
    }


def _decode(
    batch: StepBatch,
    single: npt.NDArray[np.bool_],
    owners: npt.NDArray[np.intp],
    slot_len: int,
    padded: Callable[[int], int],
) -> NetworkCall:
    slots = batch.block_indices
    mine, indices = slots[single], batch.subsequence_begins[:-1][single]
    inputs = idle_inputs(padded(int(mine.max()) + 1), slot_len)
    inputs[TOKEN_IDS][mine, 0] = batch.token_ids[indices]
    inputs[POSITION_IDS][mine, 0] = batch.position_ids[indices]
    inputs[PAST_LENS][mine] = batch.past_lens[single]
    inputs[CONTEXT_LENS][mine] = batch.past_lens[single] + 1
    inputs[LOGIT_ROWS][: len(owners)] = slots[owners]
    return NetworkCall(inputs, 0, 0, len(owners))


def _prefill(batch: StepBatch, index: int, rows: Int32Array, first_row: int) -> NetworkCall:
    begin, end = (int(bound) for bound in batch.subsequence_begins[index : index + 2])
    past_len = batch.past_lens[index : index + 1]
    inputs = {
        TOKEN_IDS: batch.token_ids[None, begin:end],
        POSITION_IDS: batch.position_ids[None, begin:end],
        PAST_LENS: past_len,
        CONTEXT_LENS: past_len + np.int32(end - begin),
        LOGIT_ROWS: rows - np.int32(begin) if len(rows) else np.zeros(1, np.int32),
    }
    return NetworkCall(inputs, int(batch.block_indices[index]), first_row, len(rows))
