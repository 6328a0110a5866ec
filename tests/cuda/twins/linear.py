"""Twins of the products with matrices of weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from tests.cuda.calls import Call

Array = npt.NDArray[Any]


def linear(call: Call) -> None:
    num_rows = call.number("num_rows")
    names = ("K", "N", "HEADS", "PARTS", "TILE_T", "TILE_N", "TILE_K")
    depth, columns, heads, parts, tile_t, tile_n, tile_k = (int(call.constants[name]) for name in names)
    assert call.grid == (-(-num_rows // tile_t) * -(-columns // tile_n), parts, heads), call.grid
    x = call.read("x", (num_rows, heads, depth)).transpose(1, 0, 2)
    weight, groups = _weight(call), int(call.constants["GROUP"])
    turns = -(-depth // tile_k)
    each = -(-turns // parts) * tile_k
    # Products of one sum: a part's inputs, or those of them that share scales.
    step = groups or each
    products = np.zeros((parts, heads, num_rows, columns), np.float32)
    with np.errstate(all="ignore"):
        for begin in range(0, depth, step):
            product = x[..., begin : begin + step] @ weight[..., begin : begin + step].transpose(0, 2, 1)
            if groups:
                scales = call.read("scales", (heads, columns, depth // groups))
                product = product * scales[:, None, :, begin // groups]
            products[begin // each] += product
    if parts == 1:
        total = products[0].transpose(1, 0, 2).reshape(num_rows, heads * columns)
        call.store("out", _followed(call, total))
    else:
        call.store("out", products.transpose(2, 0, 1, 3).reshape(num_rows, parts, heads * columns))


def add_parts(call: Call) -> None:
    num_rows, (width, parts) = call.grid[0], (int(call.constants[name]) for name in ("WIDTH", "PARTS"))
    assert call.grid == (num_rows, -(-width // call.constants["CHUNK"]), 1), call.grid
    read = call.read("parts", (num_rows, parts, width))
    total = read[:, 0].copy()
    with np.errstate(all="ignore"):
        for part in range(1, parts):
            total += read[:, part]
    call.store("out", _followed(call, total))


def _weight(call: Call) -> Array:
    """Return the weights without scales, float32 `[heads, outputs, inputs]`."""
    depth, columns, heads = (int(call.constants[name]) for name in ("K", "N", "HEADS"))
    if not call.constants["GROUP"]:
        return np.asarray(call.read("weight", (heads, columns, depth)), np.float32)
    pairs = call.raw("weight", (heads, columns, depth // 2))
    halves = np.stack([(pairs << 4) >> 4, pairs >> 4], axis=-1)
    return np.asarray(halves.reshape(heads, columns, depth), np.float32)


def _followed(call: Call, total: Array) -> Array:
    """Return the sums `[rows, outputs]` with what comes after them."""
    width = total.shape[1]
    with np.errstate(all="ignore"):
        if call.constants["SCALED"]:
            total = total * call.read("scales", (width,))
        if call.constants["BIAS"]:
            total = total + call.read("bias", (width,))
        if call.constants["RESIDUAL"]:
            total = total + call.read("residual", total.shape)
    return total
