"""The division of attention: every key of every token once, within bounds, for whatever steps there are."""

from __future__ import annotations

import time
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trident_backend.engine.gpu.attention_plan import AttentionPlan, AttentionPlanner, PlanBounds
from trident_backend.engine.gpu.program import AttentionKind
from trident_backend.engine.protocol import Int32Array

#: Programs that a GPU of 132 multiprocessors runs at a time.
NUM_PROGRAMS = 528
Sequences = list[tuple[int, int]]  # of each how many tokens are in the cache, and how many are new


def kind_of(kv_heads: int = 8, group: int = 4, window: int = 0, rows: tuple[int, int] = (16, 128)) -> AttentionKind:
    names = ("write", "few", "many", "merge_few", "merge_many")
    return AttentionKind(kv_heads, group, 128, 128, window, *rows, *names)


@dataclass(frozen=True)
class Item:
    """A row of items."""

    table: int
    token: int
    count: int
    position: int
    begin: int
    end: int
    partial: int
    is_first: int


def items_of(array: Int32Array) -> list[Item]:
    assert array.dtype == np.int32
    assert array.flags.c_contiguous
    assert array.shape[1:] == (8,)
    return [Item(*row) for row in array.tolist()]


def arrays_of(sequences: Sequences) -> tuple[Int32Array, Int32Array, Int32Array]:
    """Past lengths, the begins of tokens, and those of tables of blocks of 32 with the end of the last."""
    past_lens, lens = np.array(sequences, np.int32).reshape(-1, 2).T
    begins = np.concatenate([[0], lens.cumsum()]).astype(np.int32)
    tables = np.concatenate([[0], (-(-(past_lens + lens) // 32)).cumsum()]).astype(np.int32)
    return past_lens, begins, tables


def plan(planner: AttentionPlanner, sequences: Sequences) -> AttentionPlan:
    return planner.plan(*arrays_of(sequences))


kinds = st.builds(
    kind_of,
    kv_heads=st.sampled_from([1, 2, 3, 8, 32]),
    group=st.sampled_from([1, 2, 3, 4, 7, 8, 16]),
    window=st.sampled_from([0, 0, 1, 17, 128, 700, 4096]),
    rows=st.sampled_from([(16, 16), (16, 64), (16, 128), (32, 128)]),
)
programs = st.sampled_from([1, 8, 56, 528])


def steps(max_past: int, max_len: int, max_seqs: int = 12) -> st.SearchStrategy[Sequences]:
    lens = st.one_of(st.just(1), st.integers(1, 9), st.integers(1, max_len))
    return st.lists(st.tuples(st.one_of(st.just(0), st.integers(0, max_past)), lens), min_size=1, max_size=max_seqs)


def divisions(found: AttentionPlan, sequences: Sequences) -> list[list[tuple[int, ...]]]:
    """How each sequence is divided, without where its tokens, tables and partials are in the step."""
    _, begins, _ = arrays_of(sequences)
    divided: list[list[tuple[int, ...]]] = [[] for _ in sequences]
    for item in items_of(np.concatenate([found.few, found.many])):
        owner = int(np.searchsorted(begins, item.token, side="right")) - 1
        key = (item.token - int(begins[owner]), item.count, item.position, item.begin, item.end, item.is_first)
        divided[owner].append((*key, int(item.partial >= 0)))
    return [sorted(each) for each in divided]


@settings(max_examples=100, deadline=None)
@given(kinds, programs, steps(max_past=3000, max_len=150, max_seqs=8))
def test_attention_plan_any_step_has_every_key_of_every_token_once(
    kind: AttentionKind, num_programs: int, sequences: Sequences
) -> None:
    """And reads no key that nobody has written, none of a block before the window, and no table but the sequence's."""
    found = plan(AttentionPlanner(kind, num_programs), sequences)
    past_lens, begins, tables = arrays_of(sequences)
    times = np.zeros((begins[-1], (past_lens + np.diff(begins)).max()), np.int8)
    for rows, array in ((kind.few_rows, found.few), (kind.many_rows, found.many)):
        for item in items_of(array):
            owner = int(np.searchsorted(begins, item.token, side="right")) - 1
            offset = item.token - begins[owner]
            assert item.table == tables[owner]
            assert item.position == past_lens[owner] + offset
            assert 0 < item.count * kind.group <= rows
            assert item.token + item.count <= begins[owner + 1]
            assert 0 <= item.begin < item.end <= item.position + item.count
            assert item.begin % 16 == 0
            if kind.window:
                assert item.begin > item.position - kind.window - 15
            times[item.token : item.token + item.count, item.begin : item.end] += 1
    positions = np.concatenate([past + np.arange(count) for past, count in sequences])[:, None]
    keys = np.arange(times.shape[1])
    seen = (keys <= positions) & ((keys > positions - kind.window) | (kind.window == 0))
    assert (times[seen] == 1).all()


@settings(max_examples=100, deadline=None)
@given(kinds, programs, steps(max_past=150_000, max_len=3000))
def test_attention_plan_any_step_has_its_partials_numbered_without_gaps_and_each_merged_once(
    kind: AttentionKind, num_programs: int, sequences: Sequences
) -> None:
    """A tile's partials follow one another in the order of its keys, so that equal tiles have equal sums."""
    found = plan(AttentionPlanner(kind, num_programs), sequences)
    for array, merges, num_partials in (
        (found.few, found.merges_few, found.num_partials_few),
        (found.many, found.merges_many, found.num_partials_many),
    ):
        assert merges.dtype == np.int32
        assert merges.flags.c_contiguous
        assert merges.shape[1:] == (4,)
        partials = {item.partial: item for item in items_of(array) if item.partial >= 0}
        assert sorted(partials) == list(range(num_partials))
        assert sum(item.partial >= 0 for item in items_of(array)) == num_partials
        merged: list[int] = []
        for token, count, first, number in merges.tolist():
            pieces = [partials[index] for index in range(first, first + number)]
            assert number > 1
            assert {(item.token, item.count) for item in pieces} == {(token, count)}
            assert all(one.end == other.begin for one, other in pairwise(pieces))
            assert [item.is_first for item in pieces] == [1] + [0] * (number - 1)
            merged += range(first, first + number)
        assert sorted(merged) == list(range(num_partials))
        assert all(item.is_first for item in items_of(array) if item.partial < 0)


def exceeds(found: AttentionPlan, bounds: PlanBounds) -> bool:
    sizes = (found.few, found.many, found.merges_few, found.merges_many)
    counts = [*(len(size) for size in sizes), found.num_partials_few, found.num_partials_many]
    limits = (bounds.few, bounds.many, bounds.merges_few, bounds.merges_many, bounds.partials_few, bounds.partials_many)
    return any(count > limit for count, limit in zip(counts, limits, strict=True))


@settings(max_examples=150, deadline=None)
@given(kinds, programs, steps(max_past=1_000_000, max_len=3000, max_seqs=64), st.integers(0, 3), st.integers(0, 3))
def test_attention_plan_any_step_is_within_the_bounds_of_its_size_and_of_larger_ones(
    kind: AttentionKind, num_programs: int, sequences: Sequences, more_tokens: int, more_seqs: int
) -> None:
    planner = AttentionPlanner(kind, num_programs)
    found = plan(planner, sequences)
    num_tokens, num_seqs = sum(count for _, count in sequences) + more_tokens, len(sequences) + more_seqs
    assert not exceeds(found, planner.bounds(num_tokens, num_seqs))
    assert not exceeds(found, planner.bounds(num_tokens))


@pytest.mark.parametrize("num_programs", [8, 56, 528])
@pytest.mark.parametrize("window", [0, 700])
def test_attention_plan_bounds_are_reached(num_programs: int, window: int) -> None:
    """By sequences whose keys are divided evenly, and for large tiles by those that just need one."""
    planner = AttentionPlanner(kind_of(kv_heads=2, window=window), num_programs)
    for num_tokens in (1, 2, 3, 8, 200):
        bounds = planner.bounds(num_tokens)
        plans = [
            plan(planner, [(591_359, 1)] * num_long + [(0, 1)] * (num_tokens - num_long))
            for num_long in range(1, num_tokens + 1)
        ]
        assert max(len(each.few) for each in plans) == bounds.few
        assert max(each.num_partials_few for each in plans) >= bounds.partials_few * 0.9
    bounds = planner.bounds(500, num_seqs=100)
    found = plan(planner, [(0, 5)] * 100)
    assert not exceeds(found, bounds)
    assert len(found.many) >= 0.9 * (bounds.many - bounds.partials_many)


def test_attention_plan_a_captured_grid_has_few_programs_without_work() -> None:
    """Beside one for each token and head, as many as the GPU runs at a time; none for layers with a short window."""
    kind, short = kind_of(), kind_of(window=128)
    for num_tokens in (1, 8, 64, 512):
        bounds = AttentionPlanner(kind, NUM_PROGRAMS).bounds(num_tokens)
        assert bounds.few * kind.num_kv_heads <= num_tokens * kind.num_kv_heads + NUM_PROGRAMS
        assert bounds.merges_few * kind.num_kv_heads <= NUM_PROGRAMS // 2
        bounds = AttentionPlanner(short, NUM_PROGRAMS).bounds(num_tokens)
        assert (bounds.few, bounds.merges_few, bounds.partials_few) == (num_tokens, 0, 0)
    for each in (kind, kind_of(rows=(16, 16))):
        assert AttentionPlanner(each, NUM_PROGRAMS).bounds(4).many == 0


def test_attention_plan_bounds_of_few_sequences_are_less_than_those_of_many_tokens() -> None:
    planner = AttentionPlanner(kind_of(), NUM_PROGRAMS)
    assert planner.bounds(2048, num_seqs=256).few < 256 + NUM_PROGRAMS // 8
    assert planner.bounds(2048, num_seqs=1).many <= 2048 // 32 + 1 + NUM_PROGRAMS // 8


@pytest.mark.parametrize("window", [0, 4096])
@settings(max_examples=30, deadline=None)
@given(step=steps(max_past=20_000, max_len=600), order=st.randoms(use_true_random=False))
def test_attention_plan_a_sequence_is_divided_as_if_it_were_alone_where_all_pieces_fit(
    window: int, step: Sequences, order: st.DataObject
) -> None:
    """Where they do not, it depends on neither its place nor what the others are, and equals are divided equally."""
    planner = AttentionPlanner(kind_of(kv_heads=2, window=window), NUM_PROGRAMS)
    alone = [divisions(plan(planner, [sequence]), [sequence])[0] for sequence in step]
    found = divisions(plan(planner, step), step)
    few, many = (
        sum(item[-1] for (_, count), each in zip(step, alone, strict=True) for item in each if (count <= 4) == is_few)
        for is_few in (True, False)
    )
    for (_, count), one, other in zip(step, alone, found, strict=True):
        if (few if count <= 4 else many) <= NUM_PROGRAMS // 2:
            assert one == other
    places = list(range(len(step)))
    order.shuffle(places)  # type: ignore[attr-defined]
    moved = [step[place] for place in places]
    assert divisions(plan(planner, moved), moved) == [found[place] for place in places]
    twice = divisions(plan(planner, [*step, *step]), [*step, *step])
    assert twice[: len(step)] == twice[len(step) :]


def test_attention_plan_a_sequence_alone_keeps_the_gpu_busy() -> None:
    """A long one has programs for half of those that run at a time; a shorter one has pieces of 256 keys."""
    planner = AttentionPlanner(kind_of(), NUM_PROGRAMS)
    long = plan(planner, [(100_000, 1)])
    assert NUM_PROGRAMS * 0.45 <= len(long.few) * 8 <= NUM_PROGRAMS * 0.55
    lens = long.few[:, 5] - long.few[:, 4]
    assert lens.max() - lens.min() <= 64 * len(lens)
    assert len(plan(planner, [(1999, 1)]).few) == 8
    assert len(plan(planner, [(255, 1)]).few) == 1


def test_attention_plan_guesses_over_a_long_context_are_divided_over_their_keys_too() -> None:
    """A token and four guesses of a group of four are 20 rows, more than a small tile has."""
    found = plan(AttentionPlanner(kind_of(), NUM_PROGRAMS), [(50_000, 5)])
    assert (len(found.few), len(found.merges_many)) == (0, 1)
    assert len(found.many) == found.num_partials_many == 33
    # The rest of a prompt, likewise: its two tiles together.
    found = plan(AttentionPlanner(kind_of(), NUM_PROGRAMS), [(50_000, 64)])
    assert len(found.merges_many) == 2
    assert 30 <= len(found.many) == found.num_partials_many <= 33


def test_attention_plan_large_tiles_that_fill_the_gpu_are_not_divided() -> None:
    found = plan(AttentionPlanner(kind_of(), NUM_PROGRAMS), [(10_000, 2048)])
    assert (len(found.many), len(found.merges_many)) == (2048 // 32, 0)


def test_attention_plan_a_long_sequence_among_many_short_ones_is_divided_and_they_are_not() -> None:
    found = plan(AttentionPlanner(kind_of(), NUM_PROGRAMS), [(100_000, 1), *[(1000, 1)] * 255])
    assert len(found.merges_few) == 1
    assert found.merges_few[0].tolist() == [0, 1, 0, 33]
    # And where all are long, pieces would only cost: there is work for the GPU many times over.
    found = plan(AttentionPlanner(kind_of(), NUM_PROGRAMS), [(200_000, 1)] * 256)
    assert (len(found.few), len(found.merges_few)) == (256, 0)


@settings(max_examples=50, deadline=None)
@given(steps(max_past=20_000, max_len=600))
def test_attention_plan_items_that_take_longest_come_first(step: Sequences) -> None:
    """Of each tile its first piece, that is: its last may be shorter."""
    found = plan(AttentionPlanner(kind_of(), NUM_PROGRAMS), step)
    for array in (found.few, found.many):
        lens = [item.end - item.begin for item in items_of(array) if item.is_first]
        assert lens == sorted(lens, reverse=True)


def test_attention_plan_takes_less_than_half_a_millisecond() -> None:
    """Where nothing disturbs the thread that plans."""
    planner = AttentionPlanner(kind_of(), NUM_PROGRAMS)
    generating = [(int(past), 1) for past in np.random.default_rng(0).integers(100, 4000, 256)]
    mixed = [*generating[:128], (20_000, 5), (3000, 5), (50, 3), (4096, 900), (0, 700), (0, 307)]
    for step in (generating, mixed):
        arrays = arrays_of(step)
        seconds = []
        for _ in range(300):
            begin = time.thread_time()
            planner.plan(*arrays)
            seconds.append(time.thread_time() - begin)
        assert min(seconds) < 5e-4
