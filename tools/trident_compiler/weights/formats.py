"""Number formats of weights: which there are, which of them a matrix takes, and what all of them will weigh.

Owns the rules that follow from roles and shapes alone, so that a plan can be made, and shown, before any weight is
read. Never converts a value, and never knows a tensor's name.
"""

from __future__ import annotations

from collections.abc import Iterable

from trident_compiler.weights import quantization
from trident_compiler.weights.roles import Role, WeightUse

#: Formats of stored values; the first three are plain, the others come with scales.
BF16, FP16, FP32, INT8, INT4, FP8 = "bf16", "fp16", "fp32", "int8", "int4", "fp8"
QUANTIZED = (INT8, INT4, FP8)
#: Bits of a value; int8 and float8 with a scale for each row.
_BITS = {FP32: 32.0, BF16: 16.0, FP16: 16.0, INT8: 8.1, FP8: 8.1}
#: Bits that an int4 group adds: a scale of 16 bits and, where it has one, a zero point of 4.
_GROUP_BITS = 20


def head_format(matrix_format: str, plain_format: str) -> str:
    """Return the format of the output projection: int8 where matrices are int4, and plain where they are fp8."""
    return {INT4: INT8, FP8: plain_format}.get(matrix_format, matrix_format)


def row_format(wanted: str, width: int) -> str:
    """Return the format of a matrix whose rows, or parts of rows, have `width` values.

    It is int8 where int4 is wanted and no group size divides the rows.
    """
    return INT8 if wanted == INT4 and quantization.group_size(width) is None else wanted


def count_matrices(uses: Iterable[WeightUse], matrix_format: str, num_devices: int = 1) -> tuple[int, int]:
    """Count the matrices of linear layers, and those among them that come out as int8 where int4 is wanted."""
    counts = [(use.row_width(num_devices), use.num_matrices) for use in uses if use.role.is_matrix]
    others = sum(count for width, count in counts if row_format(matrix_format, width) != matrix_format)
    return sum(count for _, count in counts), others


def activation_group(uses: Iterable[WeightUse], matrix_format: str) -> int:
    """Return how many neighbouring activations may share a scale in products with quantized weights.

    It is the largest usual size that divides every group of weights, or every row where a row is one group; those whose
    rows have no such size are never multiplied by quantized activations. 0 where weights are not quantized.
    """
    if matrix_format not in (INT8, INT4):
        return 0
    rows = (use.shape[-1] for use in uses if use.role.is_matrix or use.role is Role.HEAD)
    return min((size for size in map(quantization.group_size, rows) if size is not None), default=0)


def estimated_bytes(
    uses: Iterable[WeightUse], matrix_format: str, *, uniform: bool = False, num_devices: int = 1
) -> int:
    """Return about how many bytes the weights will take on each device, before any is read.

    Args:
        uses: every tensor of the network, with its role.
        matrix_format: of the linear layers.
        uniform: as `WeightSource` has it.
        num_devices: devices that share the network.
    """
    uses = tuple(uses)
    tables = {use.name for use in uses if use.role is Role.EMBEDDING}
    tied = any(use.role is Role.HEAD and use.name in tables for use in uses)
    head = _BITS[head_format(matrix_format, BF16)]
    total = 0.0
    for use in uses:
        split = num_devices if use.role.split is not None else 1
        if use.role is Role.EMBEDDING:
            total += use.size * _table_bits(matrix_format, head, tied=tied, uniform=uniform, split=num_devices > 1) / 8
        elif use.role is Role.HEAD:
            total += use.size * head / 8 / split
        elif use.role.is_matrix:
            total += use.size * _row_bits(matrix_format, use.row_width(num_devices)) / 8 / split
        elif use.role in (Role.HEADS, Role.POSITIONS) or (use.role is Role.EXACT and uniform):
            total += use.size * _BITS[BF16] / 8 / split
        else:
            total += use.size * 4 / split
    return int(total)


def _table_bits(matrix_format: str, head: float, *, tied: bool, uniform: bool, split: bool) -> float:
    """Return the bits of an embedding; 0 where the output projection is the very same constant."""
    if not tied:
        return 16.0 if matrix_format in QUANTIZED else head
    # Divided, or quantized where rows of it cannot be looked up, the head is another constant.
    rows = 16.0 if uniform and matrix_format in QUANTIZED else head
    return rows if split or rows != head else 0.0


def _row_bits(matrix_format: str, width: int) -> float:
    """Return the bits of each value, scales counted in."""
    size = quantization.group_size(width)
    return 4 + _GROUP_BITS / size if matrix_format == INT4 and size else _BITS[row_format(matrix_format, width)]
