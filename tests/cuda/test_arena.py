"""The places of values in the arena: none that live at one time overlap, and others share memory."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trident_backend.engine.gpu.program import Argument, AttentionCall, Count, Extent, Kind, Launch, Value
from trident_compiler.cuda.arena import Life, lifetimes, make_arena, num_bytes, places

_GRID = (Extent(Count.TOKENS), Extent(), Extent())


def _launch(*names: str, most: int = 0) -> Launch:
    return Launch("k", _GRID, {f"p{i}": Argument(Kind.VALUE, name) for i, name in enumerate(names)}, most=most)


def _attention(query: str, key: str, value: str, out: str) -> AttentionCall:
    return AttentionCall(0, 0, query, key, value, out, {"scale": Argument(Kind.NUMBER, number=1.0)})


@st.composite
def _programs(draw: st.DrawFn) -> tuple[list[Value], list[Launch | AttentionCall], list[Launch]]:
    count = draw(st.integers(1, 24))
    kinds = st.tuples(st.sampled_from(list(Count)), st.integers(1, 300), st.sampled_from(["bf16", "fp32", "i8"]))
    values = [Value(f"v{i}", *draw(kinds)) for i in range(count)]
    name = st.integers(0, count - 1).map(lambda i: f"v{i}")
    launch = st.builds(lambda names, most: _launch(*names, most=most), st.lists(name, max_size=4), st.integers(0, 64))
    attention = st.builds(_attention, name, name, name, name)
    return values, draw(st.lists(launch | attention, max_size=30)), draw(st.lists(launch, max_size=8))


@settings(deadline=None, max_examples=200)
@given(_programs(), st.integers(1, 64))
def test_make_arena_keeps_values_apart_that_live_at_one_time(
    program: tuple[list[Value], list[Launch | AttentionCall], list[Launch]], max_rows: int
) -> None:
    values, body, head = program
    arena = make_arena(values, body, head, max_rows)
    steps = [*body, *head]
    uses: dict[str, list[int]] = {value.name: [] for value in values}
    for index, step in enumerate(steps):
        named = {each.name for each in step.arguments.values() if each.kind is Kind.VALUE}
        if isinstance(step, AttentionCall):
            named |= {step.query, step.key, step.value, step.out}
        for name in named:
            uses[name].append(index)

    assert [value.name for value in arena.values] == [value.name for value in values if uses[value.name]]
    for value in arena.values:
        rows = 1 if value.count is Count.ONE else max_rows
        size = rows * value.width * {"bf16": 2, "fp32": 4, "i8": 1}[value.dtype]
        assert value.offset % 256 == 0
        assert num_bytes(value, max_rows) >= size
        assert value.offset + size <= arena.num_bytes
    for one, other in combinations(arena.values, 2):
        lives_together = any(min(uses[one.name]) <= i <= max(uses[one.name]) for i in uses[other.name]) or any(
            min(uses[other.name]) <= i <= max(uses[other.name]) for i in uses[one.name]
        )
        apart = (
            one.offset + num_bytes(one, max_rows) <= other.offset
            or other.offset + num_bytes(other, max_rows) <= one.offset
        )
        assert apart or not lives_together


def test_make_arena_lets_values_share_memory_that_do_not_live_at_one_time() -> None:
    values = [Value(f"v{i}", Count.TOKENS, 128, "bf16") for i in range(20)]
    body = [_launch(f"v{i}", f"v{i + 1}") for i in range(19)]

    assert make_arena(values, body, [], 1).num_bytes == 2 * 256


def test_lifetimes_count_attention_and_launches_that_may_be_left_out() -> None:
    steps: list[Launch | AttentionCall] = [
        _launch("a"),
        _attention("q", "k", "v", "o"),
        _launch("a", most=8),
        _launch("q"),
    ]

    assert lifetimes(steps) == {
        "a": Life(0, 2),
        "q": Life(1, 3),
        "k": Life(1, 1),
        "v": Life(1, 1),
        "o": Life(1, 1),
    }


def test_make_arena_keeps_what_the_head_reads() -> None:
    values = [Value(name, Count.TOKENS, 128, "bf16") for name in "abc"]
    arena = make_arena(values, [_launch("a"), _launch("b"), _launch("c")], [_launch("a", "c")], 1)

    offsets = [value.offset for value in arena.values]
    assert offsets[0] not in offsets[1:]
    assert offsets[1] == offsets[2]


@pytest.mark.parametrize(("rows", "count", "size"), [(7, Count.TOKENS, 7 * 20), (7, Count.ONE, 20)])
def test_num_bytes_counts_a_buffer_of_fixed_size_once(rows: int, count: Count, size: int) -> None:
    assert num_bytes(Value("v", count, 5, "fp32"), rows) == -(-size // 256) * 256


def test_places_fills_the_smallest_gap() -> None:
    lives = {"big": Life(0, 9), "old": Life(0, 1), "mid": Life(0, 9), "small": Life(2, 9)}
    offsets = places({"big": 4096, "old": 1024, "mid": 512, "small": 256}, lives)

    assert offsets["small"] == offsets["old"]
