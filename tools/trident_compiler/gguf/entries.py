"""Tables of names: what each stored tensor becomes in a checkpoint.

Owns the few ways in which the two differ, so that an architecture is a table. Never reads a value.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

from trident_compiler.gguf.layout import Indices, Part, Rows, Source, Target

#: Returns the tensors that a stored one becomes, from the source, its name, and the name that the table has for it.
Make: TypeAlias = Callable[[Source, str, str], Iterable[Target]]


@dataclass(frozen=True)
class Entry:
    """An entry of a table of names.

    Args:
        target: the name in the checkpoint, without the layer's prefix and without `.weight`.
        make: makes the tensors; takes names with everything.
        optional: some models of the architecture have no such tensor.
    """

    target: str
    make: Make
    optional: bool = False


#: Name in the file, without `blk.N.` and `.weight`, to the entry.
Table: TypeAlias = dict[str, Entry]


def read_table(source: Source, table: Table, stored_prefix: str, prefix: str) -> Iterator[Target]:
    """Yield the tensors that a table names, weights and biases.

    Args:
        source: the file.
        table: the names.
        stored_prefix: before names in the file, such as `blk.0.`.
        prefix: before names in the checkpoint, such as `model.layers.0.`.

    Raises:
        CheckpointError: a tensor is missing.
    """
    for name, entry in table.items():
        if not entry.optional:
            source.tensor(f"{stored_prefix}{name}.weight")
        for ending in (".weight", ".bias"):
            stored = f"{stored_prefix}{name}{ending}"
            if source.has(stored):
                yield from entry.make(source, stored, f"{prefix}{entry.target}{ending}")


def renamed(target: str, *, added: float = 0.0, optional: bool = False) -> Entry:
    """Return the entry of a tensor with another name, and with a number added to each value of its weight."""

    def make(source: Source, stored: str, name: str) -> Iterator[Target]:
        number = added if name.endswith(".weight") else 0.0
        yield Target(name, source.tensor(stored).shape, (Part((Rows(stored),), added=number),))

    return Entry(target, make, optional)


#: Returns the order of a tensor's rows, from the source and how many there are; None where the heads are not as many.
Order: TypeAlias = Callable[[Source, int], "Indices | None"]


def reordered(target: str, order: Order, *, optional: bool = False) -> Entry:
    """Return the entry of a tensor whose rows stand in another order."""

    def make(source: Source, stored: str, name: str) -> Iterator[Target]:
        shape = source.tensor(stored).shape
        wanted = order(source, shape[0])
        if wanted is None:
            raise source.refuse(stored, "its rows are not those of as many heads as the file's keys say")
        yield Target(name, shape, (Part((Rows(stored, wanted),)),))

    return Entry(target, make, optional)


def transposed(target: str) -> Entry:
    """Return the entry of a matrix that the checkpoint holds as `[in, out]`; a bias is as it is."""

    def make(source: Source, stored: str, name: str) -> Iterator[Target]:
        shape = source.tensor(stored).shape
        yield Target(name, shape[::-1], (Part((Rows(stored),), transposed=len(shape) > 1),))

    return Entry(target, make)


def split(targets: Iterable[str], sizes: Callable[[Source], Iterable[int]]) -> Entry:
    """Return the entry of a tensor whose rows are those of several, in the order of `targets`."""
    names = tuple(targets)

    def make(source: Source, stored: str, name: str) -> Iterator[Target]:
        shape, first = source.tensor(stored).shape, 0
        wanted = tuple(sizes(source))
        if shape[0] != sum(wanted):
            raise source.refuse(stored, f"it would have {sum(wanted)} rows")
        base, ending = name.rsplit(".", 1)
        prefix = base[: -len(names[0])]
        for target, size in zip(names, wanted, strict=True):
            rows = Rows(stored, range(first, first + size))
            yield Target(f"{prefix}{target}.{ending}", (size, *shape[1:]), (Part((rows,)),))
            first += size

    return Entry(names[0], make, optional=True)


def experts(target: str) -> Entry:
    """Return the entry of a stack of matrices, each of which the checkpoint has by itself; `{}` is its number."""

    def make(source: Source, stored: str, name: str) -> Iterator[Target]:
        num_experts, num_rows, row_length = stack_shape(source, stored)
        for expert in range(num_experts):
            rows = Rows(stored, range(expert * num_rows, (expert + 1) * num_rows))
            yield Target(name.format(expert), (num_rows, row_length), (Part((rows,)),))

    return Entry(target, make)


def stack_shape(source: Source, stored: str) -> tuple[int, int, int]:
    """Return the shape of a stack of experts' matrices.

    Raises:
        CheckpointError: it is no such stack, or not of as many experts as the file says.
    """
    shape, num_experts = source.tensor(stored).shape, source.integer("expert_count")
    if len(shape) != 3 or shape[0] != num_experts:
        raise source.refuse(stored, f"must be a stack of {num_experts} matrices")
    return shape[0], shape[1], shape[2]
