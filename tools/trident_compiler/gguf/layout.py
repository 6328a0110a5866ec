"""The tensors of a checkpoint as rows of those of a GGUF file: renamed, reordered, joined and taken apart.

Owns the few ways in which the two differ, so that an architecture is a table of names. Never reads a value.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from trident_compiler.checkpoint.json_config import JsonConfig
from trident_compiler.gguf.gguf_file import GgufFile, GgufTensor
from trident_ensemble.contract.errors import CheckpointError

Indices: TypeAlias = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Rows:
    """Rows of a stored tensor; a vector, or a tensor that is seen `flat`, has rows of one value.

    Args:
        tensor: the stored tensor's name.
        wanted: which of its rows, in which order; None for all.
        flat: it is seen as one vector.
    """

    tensor: str
    wanted: Indices | range | None = None
    flat: bool = False


@dataclass(frozen=True)
class Part:
    """Rows that follow one another in a tensor of the checkpoint.

    Args:
        rows: from one stored tensor or several, one after the other.
        interleaved: the first rows of each, then the second of each, and so on.
        transposed: columns become rows, of the whole part.
        added: to each value.
    """

    rows: tuple[Rows, ...]
    interleaved: bool = False
    transposed: bool = False
    added: float = 0.0


@dataclass(frozen=True)
class Target:
    """A tensor of the checkpoint.

    Args:
        name: as the hub spells it.
        shape: slowest dimension first.
        parts: its values, one part after the other.
    """

    name: str
    shape: tuple[int, ...]
    parts: tuple[Part, ...]

    @property
    def sources(self) -> Iterator[str]:
        """The stored tensors that it is made of, some of them more than once."""
        return (rows.tensor for part in self.parts for rows in part.rows)


class Source:
    """An opened file, asked in the words of its architecture.

    Args:
        file: the file.
        architecture: its `general.architecture`, which its keys begin with.
    """

    def __init__(self, file: GgufFile, architecture: str) -> None:
        self.file = file
        self.architecture = architecture

    @property
    def metadata(self) -> JsonConfig:
        """Every key of the file."""
        return self.file.metadata

    def key(self, name: str) -> str:
        """Return the whole key of a name that is the architecture's own."""
        return f"{self.architecture}.{name}"

    def has_key(self, name: str) -> bool:
        """Return whether the file says so much."""
        return self.key(name) in self.metadata.values

    def integer(self, name: str, default: int | None = None, *, least: int = 1) -> int:
        """Return a whole number; a list that says the same of each layer is that number.

        Raises:
            CheckpointError: missing without a default, or no such number; names the key.
        """
        key = self.key(name)
        value = self.metadata.values.get(key)
        if isinstance(value, np.ndarray):
            if len(value) == 0 or (value != value[0]).any():
                raise self.metadata.refuse(key, "differs from layer to layer, which no model of this architecture does")
            return JsonConfig({key: value[0].item()}, self.metadata.where).integer(key, least=least)
        return self.metadata.integer(key, default, least=least)

    def number(self, name: str, default: float | None = None) -> float:
        """Return a positive number.

        Raises:
            CheckpointError: missing without a default, or no such number; names the key.
        """
        return self.metadata.number(self.key(name), default)

    def flag(self, name: str, *, default: bool = False) -> bool:
        """Return true or false.

        Raises:
            CheckpointError: it is neither; names the key.
        """
        return self.metadata.flag(self.key(name), default=default)

    def flags(self, name: str, length: int) -> list[bool] | None:
        """Return true or false for each layer; None where the file does not say.

        Raises:
            CheckpointError: there are not as many as layers; names the key.
        """
        value = self.metadata.values.get(self.key(name))
        if value is None:
            return None
        if not isinstance(value, np.ndarray) or len(value) != length:
            raise self.metadata.refuse(self.key(name), f"must say true or false of each of the {length} layers")
        return [bool(flag) for flag in value]

    def has(self, tensor: str) -> bool:
        """Return whether the file holds a tensor."""
        return tensor in self.file.tensors

    def tensor(self, name: str) -> GgufTensor:
        """Return a stored tensor.

        Raises:
            CheckpointError: there is none; names it.
        """
        try:
            return self.file.tensors[name]
        except KeyError:
            raise CheckpointError(
                f"{self.metadata.where}: tensor {name} is missing, without which there is no model of the architecture "
                f"{self.architecture}"
            ) from None

    def refuse(self, tensor: str, problem: str) -> CheckpointError:
        """Return the error that names a tensor."""
        shape = list(self.tensor(tensor).shape)
        return CheckpointError(f"{self.metadata.where}: {tensor} of shape {shape}: {problem}")


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
Table: TypeAlias = Mapping[str, Entry]


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
