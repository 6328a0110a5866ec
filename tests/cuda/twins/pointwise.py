"""Twins of the functions of single numbers, and of copies of columns."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from tests.cuda.calls import Call

Array = npt.NDArray[Any]
_erf = np.vectorize(math.erf, otypes=[np.float32])


def _sigmoid(x: Array) -> Array:
    return np.asarray(np.float32(1) / (np.float32(1) + np.exp(-x)))


def _gelu(x: Array) -> Array:
    return np.asarray(np.float32(0.5) * x * (np.float32(1) + _erf(x / np.float32(math.sqrt(2)))))


def _gelu_tanh(x: Array) -> Array:
    inner = np.float32(math.sqrt(2 / math.pi)) * x * (1 + np.float32(0.044715) * x * x)
    return np.asarray(np.float32(0.5) * x * (1 + np.tanh(inner)))


#: By the number that OP is.
_ACTIVATIONS: tuple[Callable[[Array], Array], ...] = (
    lambda x: x * _sigmoid(x),
    _gelu,
    _gelu_tanh,
    lambda x: np.where(x < 0, np.float32(0), x),
    lambda x: np.where(x < 0, np.float32(0), x * x),
    _sigmoid,
    np.tanh,
)


def unary(call: Call) -> None:
    x = call.read("x", _shape(call))
    with np.errstate(all="ignore"):
        call.store("out", _ACTIVATIONS[int(call.constants["OP"])](x))


def binary(call: Call) -> None:
    shape = _shape(call)
    a, b = call.read("a", shape), call.read("b", (shape[0], int(call.constants["B_WIDTH"])))
    with np.errstate(all="ignore"):
        call.store("out", (np.add, np.multiply)[int(call.constants["OP"])](a, b))


def numbers(call: Call) -> None:
    factor, term, low, high = (np.float32(call.number(name)) for name in ("factor", "term", "low", "high"))
    with np.errstate(all="ignore"):
        result = call.read("x", _shape(call)) * factor + term
        if call.constants["AT_MOST"]:
            result = np.where(result > high, high, result)
        if call.constants["AT_LEAST"]:
            result = np.where(result < low, low, result)
    call.store("out", result)


def gated(call: Call) -> None:
    gate, up = call.read("gate", _shape(call)), call.read("up", _shape(call))
    with np.errstate(all="ignore"):
        call.store("out", _ACTIVATIONS[int(call.constants["OP"])](gate) * up)


def copy_columns(call: Call) -> None:
    names = ("HEADS", "WIDTH", "OUT_ROW", "OUT_AT", "X_ROW", "X_AT", "CHUNK")
    heads, width, out_row, out_at, x_row, x_at, chunk = (int(call.constants[name]) for name in names)
    assert call.grid[1:] == (-(-heads * width // chunk), 1), call.grid
    shape = call.grid[0] * heads
    copied = call.raw("x", (shape, x_row))[:, x_at : x_at + width]
    call.raw("out", (shape, out_row))[:, out_at : out_at + width] = copied


def _shape(call: Call) -> tuple[int, int]:
    width = int(call.constants["WIDTH"])
    assert call.grid[1:] == (-(-width // call.constants["CHUNK"]), 1), call.grid
    return call.grid[0], width
