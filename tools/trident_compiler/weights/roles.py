"""The roles that tensors play in a network: all that planning and division know of them.

Owns the roles and what each implies for a division among devices. Never knows a tensor's name or a number format. A
family gives every tensor its role when it asks for it; Megatron's division follows: heads and the feed-forward's inner
features are shared out, embeddings and norms are whole on each device.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum


class Split(Enum):
    """The axis of a matrix `[out, in]` along which devices share it."""

    #: Each device computes some of the outputs; a bias goes with them.
    OUT = "out"
    #: Each device computes with some of the inputs, and an all_reduce sums the results.
    IN = "in"
    #: Each device takes some of the members of a stack, one for each head.
    HEADS = "heads"


class Role(Enum):
    """The roles that a tensor can have in a network."""

    #: `[vocab, hidden]`: a step reads a few of its rows. Whole on each device.
    EMBEDDING = "embedding"
    #: `[positions, hidden]`: a step reads a few of its rows. Whole on each device.
    POSITIONS = "positions"
    #: `[vocab, hidden]`: the output projection, column-parallel.
    HEAD = "head"
    #: `[out, in]`, column-parallel.
    COLUMN = "column"
    #: `[out, in]`, row-parallel.
    ROW = "row"
    #: `[out, in]`, whole on each device.
    WHOLE = "whole"
    #: `[out, in]`, whole on each device and never quantized: small, and what is chosen by it must be exact.
    EXACT = "exact"
    #: `[heads, out, in]`, a matrix for each head, divided by heads and never quantized.
    HEADS = "heads"
    #: `[out]`: the bias of a column-parallel matrix, divided with its outputs.
    COLUMN_BIAS = "column bias"
    #: `[heads, size]`, a vector for each head, divided by heads.
    HEAD_VECTORS = "head vectors"
    #: `[size]`: a norm's scale, or another bias. Whole on each device.
    VECTOR = "vector"

    @property
    def split(self) -> Split | None:
        """The axis along which devices share the tensor; None where each has the whole."""
        return _SPLITS.get(self)

    @property
    def is_matrix(self) -> bool:
        """Whether it is the weight of a linear layer inside the decoder, in whichever format is wanted."""
        return self in _MATRICES


_SPLITS = {
    Role.HEAD: Split.OUT,
    Role.COLUMN: Split.OUT,
    Role.COLUMN_BIAS: Split.OUT,
    Role.ROW: Split.IN,
    Role.HEADS: Split.HEADS,
    Role.HEAD_VECTORS: Split.HEADS,
}
_MATRICES = frozenset({Role.COLUMN, Role.ROW, Role.WHOLE})


@dataclass(frozen=True)
class WeightUse:
    """One tensor that a network asks for.

    Args:
        name: of the tensor in the checkpoint, or of the part of one.
        role: what it is for; a tied table is asked for in two roles.
        shape: of the whole weight; a stack of matrices or vectors has one axis more, the first.
    """

    name: str
    role: Role
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Values of the whole tensor."""
        return math.prod(self.shape)

    def row_width(self, num_devices: int) -> int:
        """Values in one row of a device's part of a matrix."""
        return self.shape[-1] // num_devices if self.role.split is Split.IN else self.shape[-1]

    @property
    def num_matrices(self) -> int:
        """Matrices of a stack; 1 for one that stands alone."""
        return self.shape[0] if len(self.shape) > 2 else 1
