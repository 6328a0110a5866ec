"""The values of stored tensors, a few rows at a time, and the number types that a checkpoint holds them in.

Owns the conversion from GGML's blocks to floats, by the `gguf` package, and the choice of the narrowest type that keeps
a tensor exactly. Never holds more than a slice of a large tensor as floats.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from trident_compiler.gguf.gguf_file import GgufTensor
from trident_compiler.gguf.layout import Part, Rows, Target
from trident_compiler.weights.quantization import to_bfloat16, to_float16, to_float32
from trident_ensemble.contract.errors import CheckpointError

#: Number types of safetensors, with those of numpy that hold them; bfloat16 is the uint16 of its bits.
BF16, F16, F32 = "BF16", "F16", "F32"
STORED: dict[str, npt.DTypeLike] = {BF16: np.uint16, F16: np.float16, F32: np.float32}
_FLOATS = (BF16, F16, F32)
#: Values that are floats at a time.
_SLICE = 1 << 22


def check_readable(tensor: GgufTensor, where: str) -> None:
    """Refuse a tensor whose number type the `gguf` package does not convert.

    Raises:
        CheckpointError: names the tensor and its type.
    """
    if tensor.type_name in _FLOATS:
        return
    try:
        _dequantize(tensor, tensor.data[:1])
    except NotImplementedError:
        raise CheckpointError(
            f"{where}: {tensor.name}: the gguf package does not convert {tensor.type_name}; import another "
            "quantization of the model"
        ) from None


def rows(tensor: GgufTensor, wanted: slice | npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    """Return rows of a tensor as float32 `[rows, row length]`; a row is the last dimension."""
    stored = tensor.data[wanted]
    if tensor.type_name == F32:
        return np.ascontiguousarray(stored).view("<f4")
    if tensor.type_name == F16:
        return np.ascontiguousarray(stored).view("<f2").astype(np.float32)
    if tensor.type_name == BF16:
        return (np.ascontiguousarray(stored).view("<u2").astype(np.uint32) << 16).view(np.float32)
    return _dequantize(tensor, stored)


def read_rows(tensor: GgufTensor, wanted: Rows) -> npt.NDArray[np.float32]:
    """Return what `Rows` names, as float32 `[rows, row length]`; a vector's rows have one value."""
    if wanted.flat or len(tensor.shape) == 1:
        values = rows(tensor, slice(None)).reshape(-1, 1)
        return values if wanted.wanted is None else values[np.asarray(wanted.wanted)]
    if wanted.wanted is None:
        return rows(tensor, slice(None))
    if isinstance(wanted.wanted, range):
        return rows(tensor, slice(wanted.wanted.start, wanted.wanted.stop))
    return rows(tensor, wanted.wanted)


def row_slices(first: int, last: int, row_length: int) -> Iterator[slice]:
    """Yield slices that cover rows `first` to `last`, each of so many rows as are converted at a time."""
    step = max(1, _SLICE // row_length)
    for begin in range(first, last, step):
        yield slice(begin, min(begin + step, last))


def _dequantize(tensor: GgufTensor, stored: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    from gguf.constants import GGMLQuantizationType  # noqa: PLC0415 (it takes a second)
    from gguf.quants import dequantize  # noqa: PLC0415

    # A damaged scale may be infinite; what a value becomes of it is checked where it is written.
    with np.errstate(all="ignore"):
        values: npt.NDArray[np.float32] = dequantize(stored, GGMLQuantizationType[tensor.type_name])
    return values


def narrowest_exact(target: Target, tensors: Mapping[str, GgufTensor]) -> str:
    """Return the narrowest type that holds every value of a tensor of the checkpoint exactly; BF16 before F16."""
    possible = [BF16, F16]
    for values in pieces(target, tensors):
        possible = [dtype for dtype in possible if _is_exact(values, dtype)]
        if not possible:
            return F32
    return possible[0]


def _is_exact(values: npt.NDArray[np.float32], dtype: str) -> bool:
    stored = encode(values, dtype)
    return stored is not None and bool(np.array_equal(to_float32(stored), values))


def encode(values: npt.NDArray[np.float32], dtype: str) -> npt.NDArray[Any] | None:
    """Return values in a number type of safetensors, rounded to the nearest; None where one is too large for it."""
    if dtype == F32:
        return values
    return to_float16(values) if dtype == F16 else to_bfloat16(values)


def pieces(target: Target, tensors: Mapping[str, GgufTensor]) -> Iterator[npt.NDArray[np.float32]]:
    """Yield the values of a tensor of the checkpoint in its order, a slice at a time where its parts allow it."""
    for part in target.parts:
        if len(part.rows) > 1 or part.transposed:
            yield _plus(_joined(part, tensors), part.added)
            continue
        (wanted,) = part.rows
        tensor = tensors[wanted.tensor]
        if wanted.flat or len(tensor.shape) == 1:
            yield _plus(read_rows(tensor, wanted), part.added)
            continue
        order = range(tensor.num_rows) if wanted.wanted is None else wanted.wanted
        for some in row_slices(0, len(order), tensor.row_length):
            yield _plus(read_rows(tensor, Rows(wanted.tensor, order[some])), part.added)


def _plus(values: npt.NDArray[np.float32], added: float) -> npt.NDArray[np.float32]:
    return values + np.float32(added) if added else values


def _joined(part: Part, tensors: Mapping[str, GgufTensor]) -> npt.NDArray[np.float32]:
    blocks = [read_rows(tensors[wanted.tensor], wanted) for wanted in part.rows]
    width = blocks[0].shape[1]
    joined = np.stack(blocks, axis=1).reshape(-1, width) if part.interleaved else np.concatenate(blocks)
    return np.ascontiguousarray(joined.T) if part.transposed else joined
