"""Parts of stored tensors: which rows of which tensor a network takes for one of its weights.

Owns how a weight is found in a tensor that holds it in another form: fused with others, transposed, stacked, or with
its rows in another order. Never reads a file, and never converts a value.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

#: Rows, or columns, in the order in which they are wanted. A range costs nothing; an array copies what it takes.
Order = range | npt.NDArray[np.intp]


@dataclass(frozen=True)
class TensorPart:
    """One weight within a stored tensor.

    What is taken, in this order: one member of a stack, its transpose, some rows of that, some columns of those.

    Args:
        name: of the stored tensor.
        shape: of the stored tensor.
        label: tells parts of one tensor apart; not empty where a tensor has several.
        member: which matrix or vector of a stack, along its first axis.
        transposed: the matrix is stored as `[in, out]`.
        rows: which outputs, in which order; None is all.
        columns: which inputs; None is all.
    """

    name: str
    shape: tuple[int, ...]
    label: str = ""
    member: int | None = None
    transposed: bool = False
    rows: Order | None = field(default=None, compare=False)
    columns: Order | None = field(default=None, compare=False)

    @property
    def full_name(self) -> str:
        """A name that no other part has."""
        return f"{self.name}[{self.label}]" if self.label else self.name

    def take(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return the part of the tensor's values; a view of them where that is possible."""
        if self.member is not None:
            values = values[self.member]
        if self.transposed:
            values = values.T
        if self.rows is not None:
            values = values[_index(self.rows)]
        return values if self.columns is None else values[..., _index(self.columns)]


def _index(order: Order) -> slice | npt.NDArray[np.intp]:
    return slice(order.start, order.stop, order.step) if isinstance(order, range) else order


@dataclass(frozen=True)
class LinearPart:
    """One linear layer within a stored one, whose weight and bias it shares out in the same way.

    Args:
        name: of the stored layer; its tensors are `name.weight` and `name.bias`.
        stored_out: outputs of the stored layer; None where they are this one's alone.
        rows: which of them, in which order; None is all.
        label: tells parts of one layer apart.
        transposed: the weight is stored as `[in, out]`.
    """

    name: str
    stored_out: int | None = None
    rows: Order | None = field(default=None, compare=False)
    label: str = ""
    transposed: bool = False

    def weight(self, out_size: int, in_size: int) -> TensorPart:
        """Return where the `[out, in]` weight is stored."""
        stored = (self.stored_out or out_size, in_size)
        shape = stored[::-1] if self.transposed else stored
        return TensorPart(f"{self.name}.weight", shape, self.label, transposed=self.transposed, rows=self.rows)

    def bias(self, out_size: int) -> TensorPart:
        """Return where the `[out]` bias is stored."""
        return TensorPart(f"{self.name}.bias", (self.stored_out or out_size,), self.label, rows=self.rows)

    def reordered(self, order: npt.NDArray[np.intp]) -> LinearPart:
        """Return the same layer with its outputs in another order."""
        return replace(self, rows=order if self.rows is None else np.asarray(self.rows)[order])


def fused(name: str, *, transposed: bool = False, groups: int = 1, **sizes: int) -> tuple[LinearPart, ...]:
    """Return the layers that one stored layer holds, in the order of their sizes.

    Args:
        name: of the stored layer.
        transposed: its weight is stored as `[in, out]`.
        groups: its outputs are so many groups, one after another, and each has some outputs of every layer.
        sizes: label -> outputs of that layer in one group.
    """
    width = sum(sizes.values())
    parts, begin = [], 0
    for label, size in sizes.items():
        rows: Order = range(begin, begin + size)
        if groups > 1:
            rows = (np.arange(groups)[:, None] * width + np.asarray(rows)).reshape(-1)
        parts.append(LinearPart(name, groups * width, rows, label, transposed))
        begin += size
    return tuple(parts)


def halves_of_pairs(num_heads: int, head_dim: int, rotated: int, rotated_from: int = 0) -> npt.NDArray[np.intp]:
    """Return the order of rows that turns rotated pairs into rotated halves, in every head.

    A checkpoint may rotate neighbouring features against each other, (0, 1), (2, 3) and so on. With the even ones first
    and the odd ones after them the same products of queries and keys come from halves.

    Args:
        num_heads: heads of the layer.
        head_dim: size of a head.
        rotated: how many features of a head are rotated.
        rotated_from: the first of them.
    """
    order = np.arange(head_dim)
    pairs = np.arange(rotated_from, rotated_from + rotated)
    order[rotated_from : rotated_from + rotated] = np.concatenate([pairs[0::2], pairs[1::2]])
    return (np.arange(num_heads)[:, None] * head_dim + order).reshape(-1)
