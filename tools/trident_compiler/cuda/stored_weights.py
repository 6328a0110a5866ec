"""The weights of a network as kernels take them.

Owns in which types weights of each format are written, and that each is written once and then let go. Never multiplies
anything.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from trident_backend.engine.gpu.program import Argument
from trident_compiler.cuda.builder import NOTHING, LaunchMaker
from trident_compiler.cuda.builder import weight as weight_argument
from trident_compiler.cuda.linear_tiles import DTYPES, Matrix
from trident_compiler.weights import formats
from trident_compiler.weights.weights import Weight


@dataclass(frozen=True)
class StoredMatrix:
    """Matrices in the weights' file.

    Args:
        matrix: their shape and type.
        values: where they are.
        scales: float32, where they are quantized.
    """

    matrix: Matrix
    values: Argument
    scales: Argument = NOTHING


class StoredWeights:
    """The weights of one program.

    Args:
        make: takes them.
        release: is told of each weight that has been written.
    """

    def __init__(self, make: LaunchMaker, release: Callable[[Weight], None] = lambda _: None) -> None:
        self._make = make
        self._release = release

    def matrix(self, weight: Weight) -> StoredMatrix:
        """Return a weight `[out, in]`, or a stack `[members, out, in]`, with its scales."""
        matrix, scales = Matrix.of(weight), NOTHING
        if weight.scales is not None:
            # One scale for a row has no axis of its own.
            per_row = matrix.has_row_scales
            stored = weight.scales.reshape(weight.scales.shape[:-1]) if per_row else weight.scales
            name = self._make.weight(f"{weight.name} (scales)", stored.astype(np.float32, copy=False), "fp32")
            scales = weight_argument(name)
        return StoredMatrix(matrix, self._values(weight), scales)

    def table(self, weight: Weight) -> tuple[Argument, str]:
        """Return a table of rows to look up, and Triton's name of its type."""
        assert weight.format not in formats.QUANTIZED, f"{weight.name}: rows of {weight.format}"
        return self._values(weight), DTYPES[weight.format]

    def vector(self, weight: Weight | None) -> Argument:
        """Return a vector in float32; nothing where there is none."""
        if weight is None:
            return NOTHING
        assert weight.format == formats.FP32, weight.name
        return self._values(weight)

    def _values(self, weight: Weight) -> Argument:
        name = self._make.weight(weight.name, weight.values, DTYPES[weight.format])
        self._release(weight)
        return weight_argument(name)
