"""Weights of which only shapes and formats are known, so that a program can be planned before any is read.

Owns zeros that take no memory, in the formats in which `WeightSource` would hand the weights out. Never reads a
checkpoint.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from trident_compiler.compiler import WeightFormats
from trident_compiler.weights import quantization
from trident_compiler.weights.formats import BF16, FP8, FP16, FP32, INT4, INT8, QUANTIZED, head_format, row_format
from trident_compiler.weights.roles import Role
from trident_compiler.weights.tensor_parts import TensorPart
from trident_compiler.weights.weights import Weight

_TYPES: dict[str, npt.DTypeLike] = {
    BF16: np.uint16,
    FP16: np.float16,
    FP32: np.float32,
    INT8: np.int8,
    INT4: np.uint8,
    FP8: np.uint8,
}


class PlannedWeights:
    """The `Weights` of one device that has the whole network.

    Args:
        formats: in which they will be handed out.
        tied: the output projection is the table of embeddings.
    """

    num_devices = 1

    def __init__(self, formats: WeightFormats, *, tied: bool) -> None:
        assert formats.uniform, "other formats depend on how tensors are stored"
        self._matrix = formats.matrix
        self._plain = formats.plain
        self._tied = tied

    def embedding(self, source: str | TensorPart, vocab_size: int, hidden_size: int) -> Weight:
        head = head_format(self._matrix, self._plain)
        if self._tied and head in QUANTIZED:
            return _zeros(f"{_name(source)} (rows)", self._plain, vocab_size, hidden_size)
        return _zeros(_name(source), head if self._tied else self._plain, vocab_size, hidden_size)

    def positions(self, source: str | TensorPart, num_positions: int, hidden_size: int) -> Weight:
        return _zeros(_name(source), self._plain, num_positions, hidden_size)

    def head(self, source: str | TensorPart, vocab_size: int, hidden_size: int) -> Weight:
        return _zeros(_name(source), head_format(self._matrix, self._plain), vocab_size, hidden_size)

    def matrix(self, source: str | TensorPart, out_size: int, in_size: int, role: Role) -> Weight:
        return _zeros(_name(source), self._format_of(role), out_size, in_size)

    def stack(self, sources: Sequence[str | TensorPart], out_size: int, in_size: int, role: Role) -> Weight:
        return _zeros(_stack_name(sources), self._format_of(role), len(sources), out_size, in_size)

    def vector(self, source: str | TensorPart, size: int, role: Role = Role.VECTOR, *, plus: float = 0.0) -> Weight:
        del role, plus
        return _zeros(_name(source), FP32, size)

    def stacked_vector(self, sources: Sequence[str | TensorPart], size: int, role: Role = Role.VECTOR) -> Weight:
        del role
        return _zeros(_stack_name(sources), FP32, len(sources), size)

    def constant(self, name: str, values: npt.NDArray[np.float32], role: Role = Role.VECTOR) -> Weight:
        del role
        return Weight(name, FP32, values.shape, values)

    def skip(self, *endings: str) -> None:
        pass

    def skip_module(self, name: str) -> None:
        pass

    def _format_of(self, role: Role) -> str:
        return self._matrix if role.is_matrix else self._plain


def _zeros(name: str, wanted: str, *shape: int) -> Weight:
    """Return a weight in a format, or in what that becomes for rows of this length."""
    form = row_format(wanted, shape[-1])
    values, scales = shape, None
    if form == INT4:
        size = quantization.group_size(shape[-1])
        assert size is not None
        values, scales = (*shape[:-1], shape[-1] // 2), (*shape[:-1], shape[-1] // size)
    elif form in QUANTIZED:
        scales = (*shape[:-1], 1)
    return Weight(
        name,
        form,
        shape,
        np.broadcast_to(np.zeros((), _TYPES[form]), values),
        None if scales is None else np.broadcast_to(np.float32(0), scales),
    )


def _name(source: str | TensorPart) -> str:
    return source if isinstance(source, str) else source.full_name


def _stack_name(sources: Sequence[str | TensorPart]) -> str:
    return f"{_name(sources[0])} and {len(sources) - 1} more"
