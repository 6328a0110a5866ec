"""Twin of the rotary position embedding."""

from __future__ import annotations

import numpy as np

from tests.cuda.calls import Call


def rotate(call: Call) -> None:
    names = ("HEADS", "DIM", "ROTATED", "TILE")
    heads, dim, rotated, tile = (int(call.constants[name]) for name in names)
    num_tokens, half = call.grid[0], rotated // 2
    assert call.grid[1:] == (-(-heads // tile), 1), call.grid
    positions = call.read("positions", (num_tokens,))
    cosines, sines = (call.gather(name, positions * half, half)[:, None] for name in ("cosines", "sines"))
    x = call.read("x", (num_tokens, heads, dim))
    first, second, rest = x[..., :half], x[..., half:rotated], x[..., rotated:]
    with np.errstate(all="ignore"):
        turned = [first * cosines - second * sines, second * cosines + first * sines, rest]
    call.store("out", np.concatenate(turned, axis=-1))
