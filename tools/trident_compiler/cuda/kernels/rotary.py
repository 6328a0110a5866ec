"""Rotary position embedding, in the Triton language.

Owns the rotation of heads by their tokens' positions. Never computes an angle: cosines and sines come as tables.
"""

import triton
import triton.language as tl


@triton.jit
def rotate(
    out,
    x,
    positions,
    cosines,
    sines,
    HEADS: tl.constexpr,
    DIM: tl.constexpr,
    ROTATED: tl.constexpr,
    TILE: tl.constexpr,
    HALF_P: tl.constexpr,
    REST_P: tl.constexpr,
):
    """Rotate the first ROTATED numbers of each head of `[T, HEADS, DIM]`, the first half against the second.

    Grid: (T, tiles of HEADS, 1). The tables are float32 `[positions, ROTATED / 2]`. The numbers behind stay. `out` may
    be `x`.
    """
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * TILE + tl.arange(0, TILE)
    head_ok = (head < HEADS)[:, None]
    HALF: tl.constexpr = ROTATED // 2
    line = (token * HEADS + head)[:, None] * DIM
    column = tl.arange(0, HALF_P)
    ok = head_ok & (column < HALF)[None, :]
    angle = tl.load(positions + token).to(tl.int64) * HALF + column
    cosine = tl.load(cosines + angle, mask=column < HALF, other=0.0)[None, :]
    sine = tl.load(sines + angle, mask=column < HALF, other=0.0)[None, :]
    place = line + column[None, :]
    first = tl.load(x + place, mask=ok, other=0.0).to(tl.float32)
    second = tl.load(x + place + HALF, mask=ok, other=0.0).to(tl.float32)
    tl.store(out + place, (first * cosine - second * sine).to(out.dtype.element_ty), mask=ok)
    tl.store(out + place + HALF, (second * cosine + first * sine).to(out.dtype.element_ty), mask=ok)
    if ROTATED < DIM:
        rest = tl.arange(0, REST_P)
        rest_ok = head_ok & (rest < DIM - ROTATED)[None, :]
        rest_place = line + ROTATED + rest[None, :]
        tl.store(out + rest_place, tl.load(x + rest_place, mask=rest_ok), mask=rest_ok)
