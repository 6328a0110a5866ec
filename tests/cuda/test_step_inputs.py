"""The inputs of a step as kernels find them on a GPU that is a double: always in one place, with nothing left over."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tensorrt.double import faults
from tests.tensorrt.double.engines import installed
from tests.tensorrt.double.gpu import GPUS
from trident_backend.engine.gpu.attention_plan import AttentionPlanner
from trident_backend.engine.gpu.device import Device
from trident_backend.engine.gpu.program import AttentionKind, Program, SamplingLimits, StepInput
from trident_backend.engine.gpu.step_inputs import StepGrids, StepInputBuffer
from trident_backend.engine.protocol import EngineSpec, Int32Array, StepBatch
from trident_ensemble.contract.errors import EngineError

NUM_PROGRAMS = 64
BLOCK = 16
SPEC = EngineSpec(vocab_size=100, max_num_seqs=5, max_num_tokens=60, max_seq_len=4000, block_size=BLOCK, num_blocks=900)
NAMES = ("write", "few", "many", "merge_few", "merge_many")
KINDS = (
    AttentionKind(2, 4, 64, 64, 0, 16, 64, *NAMES),
    AttentionKind(1, 8, 64, 64, 40, 16, 64, *NAMES),
)
SAMPLING = SamplingLimits(max_rows=60, max_chosen=4, max_pairs=4, num_ties=2, num_table_rows=4, top_k=(2,))
PROGRAM = Program(100, 50, 0, (), (), KINDS, (), (), "bf16", SAMPLING)
#: Of sequences: tokens in the cache, and new ones.
Lens = list[tuple[int, int]]


@contextmanager
def buffer() -> Iterator[tuple[Device, StepInputBuffer]]:
    """On a machine of its own, which has everything back at the end."""
    with installed():
        device = Device(0)
        inputs = StepInputBuffer(device, PROGRAM, SPEC, NUM_PROGRAMS)
        yield device, inputs
        inputs.close()
        device.close()
        assert not GPUS.leaks()


def batch_of(lens: Lens, seed: int, rows: list[int] | None = None) -> StepBatch:
    """A step of sequences whose blocks lie anywhere."""
    rng = np.random.default_rng(seed)
    past_lens, new_lens = np.array(lens, np.int32).reshape(-1, 2).T
    begins = np.concatenate([[0], new_lens.cumsum()]).astype(np.int32)
    num_blocks = -(-(past_lens + new_lens) // BLOCK)
    wanted = range(len(lens)) if rows is None else rows
    return StepBatch(
        token_ids=rng.integers(1, 100, begins[-1]).astype(np.int32),
        position_ids=np.concatenate([np.arange(past, past + new) for past, new in lens]).astype(np.int32),
        past_lens=np.ascontiguousarray(past_lens),
        subsequence_begins=begins,
        block_indices=rng.integers(0, SPEC.num_blocks, num_blocks.sum()).astype(np.int32),
        block_indices_begins=np.concatenate([[0], num_blocks.cumsum()]).astype(np.int32),
        max_context_len=int((past_lens + new_lens).max()),
        logit_rows=np.array(wanted, np.int32),
    )


def read(address: int, *shape: int) -> Int32Array:
    """What lies on the device."""
    num_bytes = int(np.prod(shape)) * 4
    return GPUS.view(address, num_bytes).view(np.int32).reshape(shape) if num_bytes else np.empty(shape, np.int32)


def padded(array: Int32Array, count: int, padding: int = 0) -> Int32Array:
    rest = np.full((count - len(array), *array.shape[1:]), padding, np.int32)
    return np.concatenate([array, rest])


def check(inputs: StepInputBuffer, batch: StepBatch, grids: StepGrids, num_tokens: int, num_rows: int) -> None:
    """Everything is where it belongs, and padding is behind it."""
    for name, array, count in (
        (StepInput.TOKEN_IDS, batch.token_ids, num_tokens),
        (StepInput.POSITION_IDS, batch.position_ids, num_tokens),
        (StepInput.LOGIT_ROWS, batch.logit_rows, num_rows),
    ):
        np.testing.assert_array_equal(read(inputs.address(name), count), padded(array, count))
    places = []
    for index, past in enumerate(batch.past_lens):
        table = batch.block_indices[batch.block_indices_begins[index] : batch.block_indices_begins[index + 1]]
        for position in range(past, past + np.diff(batch.subsequence_begins)[index]):
            places.append(table[position // BLOCK] * BLOCK + position % BLOCK)
    np.testing.assert_array_equal(read(inputs.places, num_tokens), padded(np.array(places, np.int32), num_tokens, -1))
    np.testing.assert_array_equal(read(inputs.tables, len(batch.block_indices)), batch.block_indices)
    for kind, attention in enumerate(KINDS):
        plan = AttentionPlanner(attention, NUM_PROGRAMS).plan(
            batch.past_lens, batch.subsequence_begins, batch.block_indices_begins[:-1]
        )
        bounds = inputs.bounds(kind, num_tokens)
        for address, array, most, grid in (
            (inputs.items_few(kind), plan.few, bounds.few, grids.few[kind]),
            (inputs.items_many(kind), plan.many, bounds.many, grids.many[kind]),
            (inputs.merges_few(kind), plan.merges_few, bounds.merges_few, grids.merges_few[kind]),
            (inputs.merges_many(kind), plan.merges_many, bounds.merges_many, grids.merges_many[kind]),
        ):
            np.testing.assert_array_equal(read(address, most, array.shape[1]), padded(array, most))
            assert grid == len(array)


steps = st.lists(
    st.tuples(
        st.lists(
            st.tuples(st.one_of(st.just(0), st.integers(0, 3900)), st.one_of(st.just(1), st.integers(1, 12))),
            min_size=1,
            max_size=SPEC.max_num_seqs,
        ),
        st.integers(0, 2**32 - 1),
        st.booleans(),
    ),
    min_size=2,
    max_size=5,
)


@settings(max_examples=40, deadline=None)
@given(steps)
def test_step_inputs_any_steps_one_after_another_leave_nothing_of_each_other(
    history: list[tuple[Lens, int, bool]],
) -> None:
    with buffer() as (device, inputs):
        for lens, seed, all_rows in history:
            num_tokens = sum(count for _, count in lens)
            batch = batch_of(lens, seed, list(range(num_tokens)) if all_rows else None)
            size = int(np.random.default_rng(seed).integers(num_tokens, SPEC.max_num_tokens + 1))
            num_rows = min(SPEC.max_num_tokens, len(batch.logit_rows) + 3)
            grids = inputs.upload(batch, size, num_rows)
            device.synchronize()
            check(inputs, batch, grids, size, num_rows)


def test_step_inputs_the_largest_step_fits() -> None:
    """In tokens, rows, sequences and tables at a time, with prompts and divided contexts."""
    longest = SPEC.max_seq_len
    lens = [(longest - 12, 12)] * SPEC.max_num_seqs
    with buffer() as (device, inputs):
        batch = batch_of(lens, 0, list(range(SPEC.max_num_tokens)))
        grids = inputs.upload(batch, SPEC.max_num_tokens, SPEC.max_num_tokens)
        device.synchronize()
        check(inputs, batch, grids, SPEC.max_num_tokens, SPEC.max_num_tokens)
        assert grids.has_many
        assert grids.merges_many[0]
        with pytest.raises(AssertionError, match="tables"):
            inputs.upload(batch_of([*lens, (1, 0)], 0, [0]), SPEC.max_num_tokens, 1)
        with pytest.raises(AssertionError, match="token_ids"):
            inputs.upload(batch_of([(0, 61)], 0, [0]), 61, 1)


def test_step_inputs_a_step_without_rows_and_prompts_says_so() -> None:
    with buffer() as (device, inputs):
        grids = inputs.upload(batch_of([(3, 1), (100, 2)], 0, []), 4, 0)
        device.synchronize()
        assert grids == StepGrids(few=(2, 2), many=(0, 0), merges_few=(0, 0), merges_many=(0, 0))
        assert not grids.has_many
        assert inputs.upload(batch_of([(3, 9)], 0), 9, 1).has_many


def test_step_inputs_lie_apart_at_multiples_of_256_bytes() -> None:
    with buffer() as (_, inputs):
        regions = [(inputs.address(name), SPEC.max_num_tokens) for name in StepInput]
        regions += [
            (inputs.places, SPEC.max_num_tokens),
            (inputs.tables, SPEC.max_num_seqs * SPEC.max_seq_len // BLOCK),
        ]
        for kind in range(len(KINDS)):
            bounds = inputs.bounds(kind, SPEC.max_num_tokens)
            regions += [(inputs.items_few(kind), bounds.few * 8), (inputs.items_many(kind), bounds.many * 8)]
            regions += [
                (inputs.merges_few(kind), bounds.merges_few * 4),
                (inputs.merges_many(kind), bounds.merges_many * 4),
            ]
        regions = sorted((address, size) for address, size in regions if size)
        assert all(address % 256 == 0 for address, _ in regions)
        assert all(begin + size * 4 <= end for (begin, size), (end, _) in pairwise(regions))
        assert inputs.tables == regions[-1][0]


def test_step_inputs_go_in_one_upload_without_the_tables_that_there_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    with buffer() as (device, inputs):
        sent: list[tuple[int, int]] = []
        upload = device.upload

        def record(address: int, array: Int32Array) -> None:
            sent.append((address, array.nbytes))
            upload(address, array)

        monkeypatch.setattr(device, "upload", record)
        inputs.upload(batch_of([(0, 1)], 0), 1, 1)
        inputs.upload(batch_of([(3000, 1)] * 4, 0), 4, 4)
        first = inputs.address(StepInput.TOKEN_IDS)
        assert sent == [(first, inputs.tables - first + 4), (first, inputs.tables - first + 4 * 188 * 4)]


def test_step_inputs_a_failed_upload_is_an_error() -> None:
    with buffer() as (_, inputs):
        faults.order("cudaMemcpyAsync")
        with pytest.raises(EngineError, match="cudaMemcpyAsync"):
            inputs.upload(batch_of([(0, 1)], 0), 1, 1)
