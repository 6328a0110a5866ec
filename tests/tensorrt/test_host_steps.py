"""The split of a step into calls of the network, against random steps and a cache of plain Python."""

from __future__ import annotations

import numpy as np
import pytest

from trident_backend.engine.protocol import StepBatch
from trident_backend.engine.tensorrt.graphs import captured_sizes
from trident_backend.engine.tensorrt.step_inputs import NetworkCall, StepCalls, split

SLOT_LEN = 40
NUM_SLOTS = 11
Place = tuple[int, int]


def random_batch(rng: np.random.Generator) -> StepBatch:
    """Sequences in scattered slots: some with one token, some with more, and any of their rows wanted."""
    slots = rng.permutation(NUM_SLOTS)[: rng.integers(1, NUM_SLOTS + 1)]
    lens = np.where(rng.random(len(slots)) < 0.5, 1, rng.integers(2, 9, len(slots)))
    past_lens = np.array([rng.integers(0, SLOT_LEN - length) for length in lens], np.int32)
    begins = np.concatenate([[0], np.cumsum(lens)]).astype(np.int32)
    positions = np.concatenate([past + np.arange(length) for past, length in zip(past_lens, lens, strict=True)])
    return StepBatch(
        token_ids=rng.integers(1, 1000, begins[-1]).astype(np.int32),
        position_ids=positions.astype(np.int32),
        past_lens=past_lens,
        subsequence_begins=begins,
        block_indices=slots.astype(np.int32),
        block_indices_begins=np.arange(len(slots) + 1, dtype=np.int32),
        max_context_len=int((past_lens + lens).max()),
        logit_rows=np.flatnonzero(rng.random(begins[-1]) < 0.5).astype(np.int32),
    )


def padded(num_seqs: int) -> int:
    return min(size for size in captured_sizes(NUM_SLOTS) if size >= num_seqs)


def run(calls: StepCalls) -> tuple[dict[Place, int], dict[int, tuple[int, int, int]]]:
    """What is written: tokens by slot and position, and rows of the buffer as slot, position and keys seen."""
    cache: dict[Place, int] = {}
    buffer: dict[int, tuple[int, int, int]] = {}
    every = [calls.decode, *calls.prefills] if calls.decode is not None else [*calls.prefills]
    for call in every:
        assert isinstance(call, NetworkCall)
        num_seqs, num_tokens = call.shape
        inputs = call.inputs
        assert all(array.dtype == np.int32 for array in inputs.values())
        for seq in range(num_seqs):
            for offset in range(num_tokens):
                place = (call.first_slot + seq, int(inputs["past_lens"][seq]) + offset)
                assert place not in cache or place[1] == SLOT_LEN - 1, "written twice"
                cache[place] = int(inputs["token_ids"][seq, offset])
        for number, row in enumerate(inputs["logit_rows"]):
            seq, offset = divmod(int(row), num_tokens)
            position = int(inputs["position_ids"][seq, offset])
            seen = int(inputs["context_lens"][seq]) - (num_tokens - 1 - offset)
            buffer[call.first_row + number] = (call.first_slot + seq, position, seen)
    return cache, buffer


@pytest.mark.parametrize("seed", range(200))
def test_host_steps_every_token_is_written_to_its_place_and_every_wanted_row_is_found(seed: int) -> None:
    batch = random_batch(np.random.default_rng(seed))
    calls = split(batch, SLOT_LEN, padded)
    cache, buffer = run(calls)
    owners = np.repeat(np.arange(len(batch.past_lens)), np.diff(batch.subsequence_begins))
    slots = batch.block_indices[owners]
    wanted = {
        (int(slot), int(position)): int(token)
        for slot, position, token in zip(slots, batch.position_ids, batch.token_ids, strict=True)
    }
    assert {place: token for place, token in cache.items() if place[1] != SLOT_LEN - 1} == wanted
    assert len(set(calls.buffer_rows.tolist())) == len(batch.logit_rows)
    for row, buffered in zip(batch.logit_rows, calls.buffer_rows, strict=True):
        position = int(batch.position_ids[row])
        assert buffer[int(buffered)] == (int(slots[row]), position, position + 1)


@pytest.mark.parametrize("seed", range(50))
def test_host_steps_rows_that_nobody_wants_do_not_make_the_buffer_longer(seed: int) -> None:
    batch = random_batch(np.random.default_rng(seed))
    calls = split(batch, SLOT_LEN, padded)
    assert sorted(calls.buffer_rows.tolist()) == list(range(len(batch.logit_rows)))
    assert (calls.decode is not None) == bool((np.diff(batch.subsequence_begins) == 1).any())
    last = max([0, *(call.first_row + len(call.inputs["logit_rows"]) for call in calls.prefills)])
    assert last <= max(len(batch.token_ids), NUM_SLOTS) + 1


def test_host_steps_a_slot_that_is_not_in_the_step_writes_to_scratch_and_reads_one_key() -> None:
    batch = StepBatch(
        token_ids=np.array([7], np.int32),
        position_ids=np.array([5], np.int32),
        past_lens=np.array([5], np.int32),
        subsequence_begins=np.array([0, 1], np.int32),
        block_indices=np.array([2], np.int32),
        block_indices_begins=np.array([0, 1], np.int32),
        max_context_len=6,
        logit_rows=np.array([0], np.int32),
    )
    decode = split(batch, SLOT_LEN, padded).decode
    assert decode is not None
    assert decode.inputs["token_ids"].tolist() == [[0], [0], [7], [0]]
    assert decode.inputs["past_lens"].tolist() == [SLOT_LEN - 1, SLOT_LEN - 1, 5, SLOT_LEN - 1]
    assert decode.inputs["context_lens"].tolist() == [1, 1, 6, 1]
    assert decode.inputs["logit_rows"][0] == 2


@pytest.mark.parametrize("num_slots", [1, 2, 3, 5, 8, 9, 256])
def test_host_steps_few_sizes_are_captured_and_none_wastes_more_than_seven_sequences(num_slots: int) -> None:
    sizes = captured_sizes(num_slots)
    assert list(sizes) == sorted(set(sizes))
    assert sizes[-1] == num_slots
    for num_seqs in range(1, num_slots + 1):
        size = min(size for size in sizes if size >= num_seqs)
        assert size - num_seqs <= min(7, max(num_seqs, 3))
    assert len(sizes) <= 4 + num_slots // 8
