"""TensorRT's number formats in numpy.

Owns how each `DataType` lies in memory and which array stands for it while a network is evaluated: every floating-point
tensor is held in float32, rounded to the numbers of its own format. Never knows a layer.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

FLOAT, HALF, BF16, FP8, INT4 = "FLOAT", "HALF", "BF16", "FP8", "INT4"
#: The formats that are held in float32.
FLOATING = frozenset({FLOAT, HALF, BF16, FP8})
#: In memory, by the name of TensorRT's `DataType`. BF16 and FP8 (e4m3) are their bits; INT4 is two to a byte, the low
#: half first.
STORAGE: dict[str, npt.DTypeLike] = {
    FLOAT: np.float32,
    HALF: np.float16,
    BF16: np.uint16,
    FP8: np.uint8,
    INT4: np.uint8,
    "INT8": np.int8,
    "UINT8": np.uint8,
    "INT32": np.int32,
    "INT64": np.int64,
    "BOOL": np.bool_,
}
_HELD: dict[str, npt.DTypeLike] = {**STORAGE, **dict.fromkeys(FLOATING, np.float32), INT4: np.int8}
_FP8_LARGEST = 448.0
_FP8_LEAST_EXPONENT = -6


def held_type(kind: str) -> np.dtype[Any]:
    """The dtype of the array that stands for a tensor of format `kind` while a network is evaluated."""
    return np.dtype(_HELD[kind])


def rounded(values: Array, kind: str) -> Array:
    """Float32 values as the nearest ones of a floating-point format, ties to even; other formats take the type alone.

    FP16 and BF16 overflow to infinity, as casts do; FP8 saturates at 448, as quantizing does.
    """
    if kind not in FLOATING:
        return values.astype(_HELD[kind], copy=False)
    values = values.astype(np.float32, copy=False)
    if kind == HALF:
        return values.astype(np.float16).astype(np.float32)
    if kind == BF16:
        return _to_bfloat16(values)
    return values if kind == FLOAT else _to_e4m3(values)


def decode(stored: Array, kind: str, shape: tuple[int, ...] | None = None) -> Array:
    """What is held for an array as it lies in memory; what is held already stays as it is.

    Args:
        stored: the array; INT4 is flat.
        kind: its format.
        shape: of the tensor; needed for INT4 alone.
    """
    if stored.dtype == _HELD[kind] or kind == HALF:
        return stored.astype(_HELD[kind], copy=False)
    if kind == BF16:
        return np.asarray(np.left_shift(stored, 16, dtype=np.uint32)).view(np.float32)
    if kind == FP8:
        return _E4M3[stored]
    if kind == INT4 and shape is not None:
        pairs = stored.reshape(-1)
        halves = np.stack([pairs & 15, pairs >> 4], axis=-1).reshape(-1)[: int(np.prod(shape))].astype(np.int8)
        return np.where(halves > 7, halves - 16, halves).astype(np.int8).reshape(shape)
    raise ValueError(f"{kind} is {np.dtype(STORAGE[kind])} in memory, not {stored.dtype}")


def encode(held: Array, kind: str) -> Array:
    """As the tensor lies in memory: the inverse of `decode` for values of the format; INT4 is none of a network's."""
    if kind == BF16:
        return (_to_bfloat16(held).view(np.uint32) >> 16).astype(np.uint16)
    if kind == FP8:
        codes = np.searchsorted(_E4M3[:0x7F], np.abs(held)).astype(np.uint8)
        codes[np.isnan(held)] = 0x7F
        return codes | (np.signbit(held).astype(np.uint8) << 7)
    assert kind != INT4, "TensorRT has no inputs and outputs of four bits"
    return held.astype(STORAGE[kind], copy=False)


def _to_bfloat16(values: Array) -> Array:
    """The upper 16 bits count; the lower ones, and the last upper one for ties, decide whether they grow by one."""
    bits = values.reshape(-1).view(np.uint32)
    nearest = ((bits + (np.uint32(0x7FFF) + ((bits >> 16) & np.uint32(1)))) & np.uint32(0xFFFF0000)).view(np.float32)
    not_numbers = np.isnan(values.reshape(-1))
    if not_numbers.any():
        nearest[not_numbers] = np.nan
    return nearest.reshape(values.shape)


def _to_e4m3(values: Array) -> Array:
    """Four bits of exponent, three of mantissa, no infinity."""
    _, exponents = np.frexp(values)
    steps = np.exp2(np.maximum(exponents - 1, _FP8_LEAST_EXPONENT) - 3.0).astype(np.float32)
    nearest: Array = np.rint(values / steps) * steps
    return np.clip(nearest, -_FP8_LARGEST, _FP8_LARGEST)


def _e4m3_table() -> npt.NDArray[np.float32]:
    """The number of each of the 256 codes."""
    codes = np.arange(128)
    exponents, mantissas = codes >> 3, codes & 7
    normal = np.exp2(exponents - 7.0) * (1 + mantissas / 8)
    below = np.exp2(float(_FP8_LEAST_EXPONENT)) * mantissas / 8
    positive = np.where(exponents > 0, normal, below).astype(np.float32)
    positive[0x7F] = np.nan
    return np.concatenate([positive, -positive])


_E4M3 = _e4m3_table()
