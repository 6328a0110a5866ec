"""The arena: where each value of a program lies, so that values that do not live at one time share memory.

Owns lifetimes and places. Pure arithmetic: never knows what a launch computes, only which values it names.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from trident_backend.engine.gpu.names import ALIGNMENT
from trident_backend.engine.gpu.program import ITEM_BYTES, Argument, AttentionCall, Count, Kind, Launch, Value


@dataclass(frozen=True)
class Life:
    """The steps of a program during which a value must keep its memory.

    Args:
        first: index of the first step that names it.
        last: index of the last one.
    """

    first: int
    last: int

    def overlaps(self, other: Life) -> bool:
        """Return whether there is a step of both."""
        return self.first <= other.last and other.first <= self.last


@dataclass(frozen=True)
class Arena:
    """The places of all values.

    Args:
        values: that are used, with their offsets.
        num_bytes: of the whole.
    """

    values: tuple[Value, ...]
    num_bytes: int


def make_arena(
    values: Sequence[Value], body: Sequence[Launch | AttentionCall], head: Sequence[Launch], max_rows: int
) -> Arena:
    """Return places for the values of a program.

    Args:
        values: all of them, in any order; those that no step names are left out.
        body: the steps over tokens.
        head: the steps over rows, which follow the body.
        max_rows: tokens, and rows, of a step at most.
    """
    lives = lifetimes([*body, *head])
    sizes = {value.name: num_bytes(value, max_rows) for value in values}
    offsets = places({name: sizes[name] for name in lives}, lives)
    whole = max((offset + sizes[name] for name, offset in offsets.items()), default=0)
    placed = tuple(replace(value, offset=offsets[value.name]) for value in values if value.name in offsets)
    return Arena(placed, whole)


def num_bytes(value: Value, max_rows: int) -> int:
    """Return the bytes of a value, a multiple of the alignment."""
    rows = 1 if value.count is Count.ONE else max_rows
    return _aligned(rows * value.width * ITEM_BYTES[value.dtype])


def lifetimes(steps: Sequence[Launch | AttentionCall]) -> dict[str, Life]:
    """Return the life of each value that a step names.

    A launch that a step may leave out, by its bounds, counts as one that is there.
    """
    lives: dict[str, Life] = {}
    for index, step in enumerate(steps):
        for name in names(step):
            lives[name] = Life(lives[name].first if name in lives else index, index)
    return lives


def names(step: Launch | AttentionCall) -> set[str]:
    """Return the names of the values that a step reads or writes."""
    named = _values(step.arguments.values())
    return named if isinstance(step, Launch) else named | {step.query, step.key, step.value, step.out}


def places(sizes: Mapping[str, int], lives: Mapping[str, Life]) -> dict[str, int]:
    """Return an offset for each value, such that no two that live at one time share a byte.

    The largest are placed first, each into the smallest gap that holds it among those that live with it.

    Args:
        sizes: bytes of each value, multiples of the alignment.
        lives: of each.
    """
    placed: list[tuple[int, int, Life]] = []
    offsets: dict[str, int] = {}
    for name in sorted(sizes, key=lambda each: (-sizes[each], lives[each].first, each)):
        taken = sorted((begin, end) for begin, end, life in placed if life.overlaps(lives[name]))
        offsets[name] = _gap(taken, sizes[name])
        placed.append((offsets[name], offsets[name] + sizes[name], lives[name]))
    return offsets


def _gap(taken: Iterable[tuple[int, int]], size: int) -> int:
    """Return the offset of the smallest gap of at least `size` between intervals, or the end of the last."""
    best, best_size, free = -1, 0, 0
    for begin, end in taken:
        if begin - free >= size and (best < 0 or begin - free < best_size):
            best, best_size = free, begin - free
        free = max(free, end)
    return free if best < 0 else best


def _values(arguments: Iterable[Argument]) -> set[str]:
    return {argument.name for argument in arguments if argument.kind is Kind.VALUE}


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
