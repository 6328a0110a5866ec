"""Norms over the last axis, in the Triton language.

Owns root-mean-square norms and layer norms, of whole tokens and of heads. Never lets one row touch another.
"""

import triton
import triton.language as tl


@triton.jit
def norm(
    out,
    x,
    scale,
    bias,
    epsilon,
    HEADS: tl.constexpr,
    DIM: tl.constexpr,
    CENTRED: tl.constexpr,
    SCALE: tl.constexpr,
    SCALE_HEADS: tl.constexpr,
    BIAS: tl.constexpr,
    BIAS_HEADS: tl.constexpr,
    TILE: tl.constexpr,
    DIM_P: tl.constexpr,
):
    """Divide each row of `[T, HEADS, DIM]` by the root of its mean square, less its mean before if CENTRED.

    Grid: (T, tiles of HEADS, 1). Scale and bias are float32 `[HEADS, DIM]`, or `[DIM]` for all heads where SCALE_HEADS
    or BIAS_HEADS is 1, and are not read without SCALE or BIAS.
    """
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * TILE + tl.arange(0, TILE)
    column = tl.arange(0, DIM_P)
    ok = (head < HEADS)[:, None] & (column < DIM)[None, :]
    place = (token * HEADS + head)[:, None] * DIM + column[None, :]
    numbers = tl.load(x + place, mask=ok, other=0.0).to(tl.float32)
    if CENTRED:
        mean = tl.sum(numbers, 1) / DIM
        numbers = tl.where(ok, numbers - mean[:, None], 0.0)
    square = tl.sum(numbers * numbers, 1) / DIM
    numbers = numbers / tl.sqrt(square + epsilon)[:, None]
    if SCALE:
        if SCALE_HEADS == 1:
            numbers *= tl.load(scale + column, mask=column < DIM, other=0.0)[None, :]
        else:
            numbers *= tl.load(scale + head[:, None] * DIM + column[None, :], mask=ok, other=0.0)
    if BIAS:
        if BIAS_HEADS == 1:
            numbers += tl.load(bias + column, mask=column < DIM, other=0.0)[None, :]
        else:
            numbers += tl.load(bias + head[:, None] * DIM + column[None, :], mask=ok, other=0.0)
    tl.store(out + place, numbers.to(out.dtype.element_ty), mask=ok)
