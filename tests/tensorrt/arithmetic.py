"""What TensorRT's layers compute: elementwise, reductions, products, quantization.

Owns a maker for each such layer: it resolves the step's attributes once and gives a function of arrays. Values come as
`number_formats` holds them; rounding the result to its tensor's format is the interpreter's. Never moves values about.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from tests.tensorrt.number_formats import FLOATING, FP8, Array, held_type, rounded

Kernel = Callable[..., Any]
#: A step's attributes, with `output_kind` of its first output and `input_kinds`.
Attributes = Mapping[str, Any]
Maker = Callable[[Attributes], Kernel]

_GELU_CUBIC = 0.044715
_INTEGER_LIMITS = {"INT8": (-128, 127), "INT4": (-8, 7)}
_REDUCTIONS: dict[str, Any] = {"SUM": np.sum, "PROD": np.prod, "MAX": np.max, "MIN": np.min, "AVG": np.mean}


def _divide(a: Array, b: Array) -> Array:
    """Integers are divided as C does, towards zero."""
    if a.dtype.kind == "f":
        return np.asarray(a / b)
    quotient = np.abs(a) // np.abs(b)
    return np.asarray(np.where((a < 0) == (b < 0), quotient, -quotient))


_ELEMENTWISE: dict[str, Kernel] = {
    "SUM": np.add,
    "PROD": np.multiply,
    "SUB": np.subtract,
    "DIV": _divide,
    "POW": np.power,
    "MAX": np.maximum,
    "MIN": np.minimum,
    "FLOOR_DIV": np.floor_divide,
    "AND": np.logical_and,
    "OR": np.logical_or,
    "XOR": np.logical_xor,
    "EQUAL": np.equal,
    "GREATER": np.greater,
    "LESS": np.less,
}
_erf = np.vectorize(math.erf, otypes=[np.float32])
_UNARY: dict[str, Kernel] = {
    "EXP": np.exp,
    "LOG": np.log,
    "SQRT": np.sqrt,
    "RECIP": lambda x: np.float32(1) / x,
    "ABS": np.abs,
    "NEG": np.negative,
    "SIN": np.sin,
    "COS": np.cos,
    "CEIL": np.ceil,
    "FLOOR": np.floor,
    "ERF": _erf,
    "NOT": np.logical_not,
    "SIGN": np.sign,
    "ROUND": np.rint,
    "ISINF": np.isinf,
    "ISNAN": np.isnan,
}


def _sigmoid(x: Array) -> Array:
    return np.asarray(1 / (1 + np.exp(-x)))


def _gelu_tanh(x: Array) -> Array:
    return np.asarray(0.5 * x * (1 + np.tanh(np.float32(math.sqrt(2 / math.pi)) * (x + _GELU_CUBIC * x**3))))


_ACTIVATIONS: dict[str, Kernel] = {
    "RELU": lambda x: np.maximum(x, 0),
    "SIGMOID": _sigmoid,
    "TANH": np.tanh,
    "GELU_ERF": lambda x: 0.5 * x * (1 + _erf(x / np.float32(math.sqrt(2)))),
    "GELU_TANH": _gelu_tanh,
}


def elementwise(values: Attributes) -> Kernel:
    return _ELEMENTWISE[values["op"]]


def unary(values: Attributes) -> Kernel:
    return _UNARY[values["op"]]


def activation(values: Attributes) -> Kernel:
    kind = values["type"]
    if kind == "CLIP":
        low, high = values["alpha"], values["beta"]
        return lambda x: np.clip(x, low, high)
    return _ACTIVATIONS[kind]


def axes_of(mask: int) -> tuple[int, ...]:
    """The axes whose bits are set, as reductions, softmax and top-k name them."""
    return tuple(axis for axis in range(mask.bit_length()) if mask >> axis & 1)


def reduce(values: Attributes) -> Kernel:
    """NaN goes through: TensorRT's documentation does not say what it does to a maximum."""
    function = _REDUCTIONS[values["op"]]
    axes, keep = axes_of(values["axes"]), values["keep_dims"]
    return lambda x: function(x, axis=axes, keepdims=keep)


def cumulative(values: Attributes) -> Kernel:
    exclusive, is_reversed = values["exclusive"], values["reverse"]

    def run(x: Array, axis: Array) -> Array:
        moved = np.moveaxis(x, int(axis), -1)
        moved = moved[..., ::-1] if is_reversed else moved
        sums = np.cumsum(moved, axis=-1, dtype=x.dtype) - (moved if exclusive else 0)
        return np.moveaxis(sums[..., ::-1] if is_reversed else sums, -1, int(axis))

    return run


def softmax(values: Attributes) -> Kernel:
    (axis,) = axes_of(values["axes"])
    return lambda x: normalized(x, axis)


def normalized(scores: Array, axis: int = -1) -> Array:
    """Softmax. Where nothing may be seen (all are minus infinity) there is none: NaN, which shows."""
    weights = np.exp(scores - scores.max(axis=axis, keepdims=True))
    return np.asarray(weights / weights.sum(axis=axis, keepdims=True))


def topk(values: Attributes) -> Kernel:
    """Sorted; of equals the first comes first, which TensorRT's documentation leaves open."""
    (axis,) = axes_of(values["axes"])
    is_largest, static = values["op"] == "MAX", values["k"]

    def run(x: Array, k: Array | None = None) -> tuple[Array, Array]:
        count = static if k is None else int(k.reshape(()))
        if count > x.shape[axis]:
            raise ValueError(f"the {count} largest of {x.shape[axis]} values")
        order = np.argsort(-x if is_largest else x, axis=axis, kind="stable").take(np.arange(count), axis)
        return np.take_along_axis(x, order, axis), order

    return run


def matrix_multiply(values: Attributes) -> Kernel:
    """Sums are in float32."""
    first, second = values["op0"], values["op1"]

    def run(a: Array, b: Array) -> Array:
        a = _operand(a, first, -2)
        b = _operand(b, second, -1)
        product = a @ b
        product = product.squeeze(-2) if first == "VECTOR" else product
        return product.squeeze(-1) if second == "VECTOR" else product

    return run


def _operand(x: Array, kind: str, vector_axis: int) -> Array:
    if kind == "VECTOR":
        return np.expand_dims(x, vector_axis)
    return x.swapaxes(-1, -2) if kind == "TRANSPOSE" else x


def cast(values: Attributes) -> Kernel:
    """To integers towards zero; to booleans, what is not zero."""
    kind = values["to_type"]
    return lambda x: x if kind in FLOATING else x.astype(held_type(kind))


def quantize(values: Attributes) -> Kernel:
    """`x / scale`, rounded to nearest with ties to even, and saturated."""
    axis = values["axis"]
    kind = values["output_kind"]

    def run(x: Array, scale: Array, *_: Array | None) -> Array:
        ratios = x / _spread(scale, x.shape, axis)
        if kind == FP8:
            return rounded(ratios, FP8)
        low, high = _INTEGER_LIMITS[kind]
        return np.clip(np.rint(ratios), low, high).astype(np.int8)

    return run


def dequantize(values: Attributes) -> Kernel:
    axis = values["axis"]
    return lambda x, scale, *_: x.astype(np.float32) * _spread(scale, x.shape, axis)


def _spread(scale: Array, shape: tuple[int, ...], axis: int) -> Array:
    """Scales against values: one for all, one for each index of `axis`, or as many axes and blocks of equal size."""
    if scale.size == 1:
        return scale.reshape(())
    if scale.ndim == 1:
        if scale.size != shape[axis]:
            raise ValueError(f"{scale.size} scales along an axis of {shape[axis]}")
        return scale.reshape([-1 if number == axis % len(shape) else 1 for number in range(len(shape))])
    if scale.ndim != len(shape) or any(size % blocks for size, blocks in zip(shape, scale.shape, strict=True)):
        raise ValueError(f"blocks of {scale.shape} do not fit values of {shape}")
    for number, size in enumerate(shape):
        scale = scale.repeat(size // scale.shape[number], axis=number)
    return scale
