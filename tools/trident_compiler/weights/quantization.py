"""Number formats: bfloat16, float8 and int8 per output channel, int4 in groups.

Owns the arithmetic of conversion, piece by piece, so that no float32 copy of a large matrix exists as a whole.
Never decides which weight takes which format. Values come as float32, float16, or uint16 holding the bits of bfloat16.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
#: Rounds scales to the format in which they are applied, before values are divided by them.
RoundScales = Callable[[Floats], Floats]
_PIECE_VALUES = 1 << 20
_GROUP_SIZES = (128, 64, 32)
#: The largest float8 of 4 exponent and 3 fraction bits (e4m3fn, which has no infinities), and its bits.
E4M3_MAX = 448.0
_E4M3_NAN_BITS, _E4M3_LEAST_EXPONENT = 0x7F, -6


def to_float32(values: npt.NDArray[Any]) -> Floats:
    """Return exactly the same numbers as float32."""
    if values.dtype == np.uint16:
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float32)


def to_bfloat16(values: npt.NDArray[Any]) -> npt.NDArray[np.uint16]:
    """Round to the nearest bfloat16, ties to even, and return its bits. NaN stays NaN."""
    result = np.empty(values.shape, np.uint16)
    for rows in _pieces(values):
        floats = to_float32(values[rows])
        bits = floats.view(np.uint32)
        rounded = (bits + (0x7FFF + ((bits >> 16) & 1))) >> 16
        result[rows] = np.where(np.isnan(floats), 0x7FC0, rounded)
    return result


def to_float16(values: npt.NDArray[Any]) -> npt.NDArray[np.float16] | None:
    """Round to the nearest float16, exact for bfloat16 from 6e-5 on; None when a value is too large for it."""
    result = np.empty(values.shape, np.float16)
    for rows in _pieces(values):
        floats = to_float32(values[rows])
        if not np.abs(floats).max(initial=0) <= np.finfo(np.float16).max:
            return None
        result[rows] = floats
    return result


def to_e4m3(values: Floats) -> npt.NDArray[np.uint8]:
    """Round to the nearest float8 e4m3fn, ties to even, and return its bits. NaN stays, larger values become 448."""
    sizes = np.minimum(np.abs(values), np.float32(E4M3_MAX))
    exponents = np.frexp(np.maximum(sizes, np.float32(2.0**_E4M3_LEAST_EXPONENT)))[1] - 1
    eighths = np.rint(np.ldexp(sizes, 3 - exponents))
    # Eight eighths are the leading 1 that is not stored; values below the least exponent have none, and one that rounds
    # up to the next power of two carries into the exponent.
    bits = (exponents - _E4M3_LEAST_EXPONENT) * 8 + eighths
    bits = np.where(np.isnan(values), _E4M3_NAN_BITS, bits).astype(np.uint8)
    signed: npt.NDArray[np.uint8] = bits | (np.signbit(values).astype(np.uint8) << np.uint8(7))
    return signed


def e4m3_per_channel(values: npt.NDArray[Any], round_scales: RoundScales) -> tuple[npt.NDArray[np.uint8], Floats]:
    """Quantize `[out, in]` to float8: the bits of e4m3 values whose largest in a row is 448, and scales `[out, 1]`."""
    quantized = np.empty(values.shape, np.uint8)
    scales = np.empty((values.shape[0], 1), np.float32)
    for rows in _pieces(values):
        floats = to_float32(values[rows])
        scales[rows] = _scale(np.abs(floats).max(axis=1, keepdims=True), E4M3_MAX, round_scales)
        quantized[rows] = to_e4m3(floats / scales[rows])
    return quantized, scales


def as_they_are(scales: Floats) -> Floats:
    """Return the scales unchanged, for those that are applied in float32."""
    return scales


def int8_per_channel(
    values: npt.NDArray[Any], round_scales: RoundScales = as_they_are
) -> tuple[npt.NDArray[np.int8], Floats]:
    """Quantize `[out, in]` to symmetric int8: values of -127..127, and scales `[out, 1]`."""
    quantized = np.empty(values.shape, np.int8)
    scales = np.empty((values.shape[0], 1), np.float32)
    for rows in _pieces(values):
        floats = to_float32(values[rows])
        scales[rows] = _scale(np.abs(floats).max(axis=1, keepdims=True), 127, round_scales)
        quantized[rows] = np.clip(np.rint(floats / scales[rows]), -127, 127)
    return quantized, scales


def int4_symmetric(values: npt.NDArray[Any], round_scales: RoundScales) -> tuple[npt.NDArray[np.uint8], Floats]:
    """Quantize `[out, in]` to symmetric int4 in groups of `group_size` along a row.

    Returns:
        values of -8..7 as their low four bits, two to a byte, low half first, `[out, in / 2]`; scales `[out, groups]`.
    """
    out_size, in_size = values.shape
    size = group_size(in_size)
    assert size is not None
    packed = np.empty((out_size, in_size // 2), np.uint8)
    scales = np.empty((out_size, in_size // size), np.float32)
    for rows in _pieces(values):
        groups = to_float32(values[rows]).reshape(-1, in_size // size, size)
        # There is an -8 and no 8.
        furthest = np.maximum(groups.max(axis=2), groups.min(axis=2) * np.float32(-7 / 8))
        scales[rows] = _scale(furthest, 7, round_scales)
        stored = np.clip(np.rint(groups / scales[rows][..., None]), -8, 7).astype(np.int8).reshape(-1, in_size)
        halves = stored.view(np.uint8) & 15
        packed[rows] = halves[:, 0::2] | halves[:, 1::2] << 4
    return packed, scales


def _scale(furthest: Floats, largest: float, round_scales: RoundScales) -> Floats:
    """Return the rounded scale that maps `furthest` to `largest`; 1 where it would be 0."""
    scale = round_scales(furthest / np.float32(largest))
    scale[scale == 0] = 1
    return scale


def group_size(in_size: int) -> int | None:
    """Return how many values share an int4 scale: the largest usual size that divides a row; None where none does."""
    return next((size for size in _GROUP_SIZES if in_size % size == 0), None)


def int4_groups(values: npt.NDArray[Any]) -> tuple[npt.NDArray[np.uint8], Floats, npt.NDArray[np.uint8]]:
    """Quantize `[out, in]` to asymmetric int4 in groups of `group_size` along a row.

    Returns:
        values of 0..15, two to a byte, low half first, `[out, in / 2]`; scales and zero points `[out, groups]`.
    """
    out_size, in_size = values.shape
    size = group_size(in_size)
    assert size is not None
    packed = np.empty((out_size, in_size // 2), np.uint8)
    scales = np.empty((out_size, in_size // size), np.float32)
    zero_points = np.empty(scales.shape, np.uint8)
    for rows in _pieces(values):
        groups = to_float32(values[rows]).reshape(-1, in_size // size, size)
        low = np.minimum(groups.min(axis=2), 0)
        high = np.maximum(groups.max(axis=2), 0)
        # The scale is applied as float16, so it is rounded before the values are divided by it.
        scale = ((high - low) / np.float32(15)).astype(np.float16).astype(np.float32)
        scale[scale == 0] = 1
        zero = np.clip(np.rint(-low / scale), 0, 15)
        stored = np.clip(np.rint(groups / scale[..., None]) + zero[..., None], 0, 15).astype(np.uint8)
        stored = stored.reshape(-1, in_size)
        packed[rows] = stored[:, 0::2] | stored[:, 1::2] << 4
        scales[rows], zero_points[rows] = scale, zero.astype(np.uint8)
    return packed, scales, zero_points


def _pieces(values: npt.NDArray[Any]) -> Iterator[slice]:
    """Yield slices over the first axis, of a bounded number of values each."""
    row = int(np.prod(values.shape[1:], dtype=np.int64)) or 1
    step = max(1, _PIECE_VALUES // row)
    return (slice(begin, begin + step) for begin in range(0, values.shape[0], step))
