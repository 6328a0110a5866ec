"""The tensors of a checkpoint as rows of those of a GGUF file: renamed, reordered, joined and taken apart.

Owns what a tensor of the checkpoint is made of, and what a file says in the words of its architecture. Never reads a
value.
"""

from __future__ import annotations

from collections.abc import Iterator
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
