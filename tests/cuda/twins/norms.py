"""Twin of the norms."""

from __future__ import annotations

import numpy as np

from tests.cuda.calls import Call


def norm(call: Call) -> None:
    heads, dim, tile = (int(call.constants[name]) for name in ("HEADS", "DIM", "TILE"))
    assert call.grid[1:] == (-(-heads // tile), 1), call.grid
    x = call.read("x", (call.grid[0], heads, dim))
    with np.errstate(all="ignore"):
        if call.constants["CENTRED"]:
            x = x - x.mean(axis=-1, keepdims=True)
        square = np.square(x).mean(axis=-1, keepdims=True)
        normed = x / np.sqrt(square + np.float32(call.number("epsilon")))
        if call.constants["SCALE"]:
            normed = normed * call.read("scale", (int(call.constants["SCALE_HEADS"]), dim))
        if call.constants["BIAS"]:
            normed = normed + call.read("bias", (int(call.constants["BIAS_HEADS"]), dim))
    call.store("out", normed)
