"""Number formats of weights: which there are, which of them a matrix takes, and what all of them will weigh.

Owns the rules that follow from names and shapes alone, so that a plan can be made, and told, before any weight is read.
Never converts a value.
"""

from __future__ import annotations

from trident_compiler.checkpoint.tensor_files import TensorFiles
from trident_compiler.weights import quantization

#: Formats of stored values; the first three are plain, the others come with scales.
BF16, FP16, FP32, INT8, INT4, FP8 = "bf16", "fp16", "fp32", "int8", "int4", "fp8"
QUANTIZED = (INT8, INT4, FP8)
#: Of a value; int8 and float8 with a scale for each row.
_BITS = {FP32: 32.0, BF16: 16.0, FP16: 16.0, INT8: 8.1, FP8: 8.1}
#: Of an int4 group: a scale of 16 bits and, where it has one, a zero point of 4.
_GROUP_BITS = 20
_EMBEDDINGS, _HEAD = "embed_tokens.weight", "lm_head.weight"
#: Matrices of which each device takes some of the inputs.
_SPLIT_IN = ("o_proj.weight", "down_proj.weight")


def head_format(matrix_format: str, plain_format: str) -> str:
    """Of the output projection: int8 where matrices are int4, and plain where they are fp8."""
    return {INT4: INT8, FP8: plain_format}.get(matrix_format, matrix_format)


def row_format(wanted: str, width: int) -> str:
    """Of a matrix whose rows, or parts of rows, have so many values: int8 where int4 has no groups that fit."""
    return INT8 if wanted == INT4 and quantization.group_size(width) is None else wanted


def count_matrices(tensors: TensorFiles, matrix_format: str, num_devices: int = 1) -> tuple[int, int]:
    """Matrices of linear layers, and those among them that come out as int8 where int4 is wanted."""
    widths = [
        _width(name, tensor.values.shape[1], num_devices)
        for name, tensor in tensors.items()
        if tensor.values.ndim == 2 and not name.endswith((_EMBEDDINGS, _HEAD))
    ]
    return len(widths), sum(row_format(matrix_format, width) != matrix_format for width in widths)


def estimated_bytes(
    tensors: TensorFiles, matrix_format: str, *, tied: bool, uniform: bool = False, num_devices: int = 1
) -> int:
    """About what the weights will take on each device, known before any is read; `WeightSource` says which format goes
    where."""
    head = _BITS[head_format(matrix_format, BF16)]
    total = 0.0
    for name, tensor in tensors.items():
        if tensor.values.ndim != 2:
            total += tensor.values.size * 4
        elif matrix_format in QUANTIZED and name.endswith(_EMBEDDINGS) and not tied:
            total += tensor.values.size * 2
        elif name.endswith(_EMBEDDINGS):
            # Divided, or quantized where rows of it cannot be looked up, the head is not the same constant.
            rows = 16 if uniform and matrix_format in QUANTIZED else head
            apart = tied and (num_devices > 1 or rows != head)
            total += tensor.values.size * (rows + head / num_devices if apart else head) / 8
        elif name == _HEAD:
            total += tensor.values.size * head / 8 / num_devices
        else:
            bits = _row_bits(matrix_format, _width(name, tensor.values.shape[1], num_devices))
            total += tensor.values.size * bits / 8 / num_devices
    return int(total)


def _width(name: str, width: int, num_devices: int) -> int:
    """Values of a device's part of a row."""
    return width // num_devices if name.endswith(_SPLIT_IN) else width


def _row_bits(matrix_format: str, width: int) -> float:
    """Of each value, scales counted in."""
    size = quantization.group_size(width)
    return 4 + _GROUP_BITS / size if matrix_format == INT4 and size else _BITS[row_format(matrix_format, width)]
