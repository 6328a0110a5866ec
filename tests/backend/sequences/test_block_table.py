"""Block tables against plain lists, and what it costs to pack them."""

from __future__ import annotations

import copy
import tracemalloc
from itertools import chain

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tests.fakes.core import make_sequence
from trident_backend.batch import pack
from trident_backend.sequences.block_table import BlockTable
from trident_backend.sequences.step_time import StepSize
from trident_backend.sequences.steps import ScheduledChunk, SchedulerOutput

BLOCKS = st.integers(0, 2**31 - 1)
CHANGES = st.one_of(
    st.tuples(st.just("append"), BLOCKS),
    st.tuples(st.just("extend"), st.lists(BLOCKS, max_size=9)),
    st.tuples(st.just("replace the last"), BLOCKS),
    st.tuples(st.just("clear"), st.none()),
)


@given(st.lists(CHANGES, max_size=20))
def test_block_table_a_table_is_a_list_of_numbers_in_one_piece_of_memory(changes: list[tuple[str, object]]) -> None:
    table, expected = BlockTable(), list[object]()
    for name, value in changes:
        if name == "append":
            table.append(value)  # type: ignore[arg-type]
            expected.append(value)
        elif name == "extend":
            table.extend(value)  # type: ignore[arg-type]
            expected.extend(value)  # type: ignore[arg-type]
        elif name == "clear":
            table.clear()
            expected.clear()
        elif expected:
            table[-1] = value  # type: ignore[call-overload]
            expected[-1] = value
        assert table == expected
        assert expected == table
        assert (table != expected) is False
        assert table != [*expected, 1]
        assert table != tuple(expected)
        assert np.frombuffer(table, np.int32).tolist() == expected
        copied = copy.deepcopy(table)
        copied.append(1)
        assert copied == [*expected, 1]
        assert table == expected


@given(st.lists(st.tuples(st.integers(1, 40), st.integers(0, 3)), min_size=1, max_size=6))
def test_block_table_a_step_is_packed_with_as_many_blocks_as_it_reads(shapes: list[tuple[int, int]]) -> None:
    """A table may hold more: of draft tokens that were not accepted."""
    rng, chunks, expected = np.random.default_rng(0), [], list[list[int]]()
    for number, (num_tokens, num_spare) in enumerate(shapes):
        sequence = make_sequence(number, [1] * num_tokens, 100)
        sequence.num_computed_tokens = num_tokens - 1
        needed = -(-num_tokens // 4)
        sequence.block_table.extend(rng.integers(0, 1000, needed + num_spare).tolist())
        chunks.append(ScheduledChunk(sequence, 1, completes=True))
        expected.append(list(sequence.block_table[:needed]))
    packed = pack(SchedulerOutput(tuple(chunks), StepSize(len(chunks), 0, len(chunks))), 4)
    assert packed.block_indices.dtype == np.int32
    assert packed.block_indices.flags.writeable
    assert packed.block_indices.tolist() == list(chain(*expected))
    assert packed.block_indices_begins.tolist() == np.cumsum([0, *map(len, expected)]).tolist()
    # What was packed stays as it was when a sequence grows.
    before = packed.block_indices.copy()
    for chunk in chunks:
        chunk.sequence.block_table.append(7)
        chunk.sequence.block_table[0] = 8
    np.testing.assert_array_equal(packed.block_indices, before)


def test_block_table_packing_copies_bytes_and_makes_no_list_of_blocks() -> None:
    """By what is allocated: 4 bytes a block; a list of them would have been 8 more."""
    num_blocks, chunks = 20_000, []
    for number in range(4):
        sequence = make_sequence(number, [1] * num_blocks, 10)
        sequence.num_computed_tokens = num_blocks - 1
        sequence.block_table.extend(range(1000, 1000 + num_blocks))
        chunks.append(ScheduledChunk(sequence, 1, completes=True))
    output = SchedulerOutput(tuple(chunks), StepSize(4, 0, 4))
    tracemalloc.start()
    try:
        packed = pack(output, 1)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(packed.block_indices) == 4 * num_blocks
    assert peak < 5 * 4 * num_blocks
