"""Products with matrices of weights, in the Triton language.

Owns how a product is divided among programs, and how weights of every format become numbers. Never lets one row of the
activations touch another, and never reads beyond the arrays: any number of rows, inputs and outputs.
"""

import triton
import triton.language as tl


@triton.jit
def nibble(words, INDEX: tl.constexpr, dtype: tl.constexpr):
    """Return the numbers of 4 bits that lie at an index of words of eight, the lowest bits first."""
    # By way of float32: two of those become 16 bits in one instruction.
    return ((words << (28 - 4 * INDEX)) >> 28).to(tl.float32).to(dtype)


@triton.jit
def eight(words, dtype: tl.constexpr):
    """Return words of eight numbers of 4 bits as those numbers, on a last axes of two, two and two."""
    even_0 = tl.join(nibble(words, 0, dtype), nibble(words, 4, dtype))
    even_1 = tl.join(nibble(words, 2, dtype), nibble(words, 6, dtype))
    odd_0 = tl.join(nibble(words, 1, dtype), nibble(words, 5, dtype))
    odd_1 = tl.join(nibble(words, 3, dtype), nibble(words, 7, dtype))
    return tl.join(tl.join(even_0, even_1), tl.join(odd_0, odd_1))


@triton.jit
def linear(
    out,
    x,
    weight,
    scales,
    bias,
    residual,
    num_rows,
    K: tl.constexpr,
    N: tl.constexpr,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    SCALED: tl.constexpr,
    BIAS: tl.constexpr,
    RESIDUAL: tl.constexpr,
    PARTS: tl.constexpr,
    TILE_T: tl.constexpr,
    TILE_N: tl.constexpr,
    TILE_K: tl.constexpr,
    BAND: tl.constexpr,
):
    """Compute `x [T, K] @ weight [N, K].T * scales + bias + residual`, of each head with a matrix of its own.

    Grid: (tiles of rows x tiles of outputs, PARTS, HEADS). `x` is `[T, HEADS * K]`, `weight` `[HEADS, N, K]`, `out` and
    `residual` `[T, HEADS * N]`, `bias` and `scales` float32 `[HEADS, N]`. With GROUP, weights are bytes of two numbers
    of 4 bits, the first in the low half, and scales are `[HEADS, N, K / GROUP]`. With PARTS above 1 each part of the
    inputs is a sum of its own: `out` is float32 `[T, PARTS, HEADS * N]`, for `add_parts`, which applies what follows.
    BAND tiles of rows use the same weights one after another.
    """
    tile = tl.program_id(0)
    part = tl.program_id(1)
    head = tl.program_id(2)
    num_t = tl.cdiv(num_rows, TILE_T)
    NUM_N: tl.constexpr = (N + TILE_N - 1) // TILE_N
    band = tile // (BAND * NUM_N)
    band_size = tl.minimum(num_t - band * BAND, BAND)
    within = tile % (BAND * NUM_N)
    row = (band * BAND + within % band_size) * TILE_T + tl.arange(0, TILE_T)
    column = (within // band_size) * TILE_N + tl.arange(0, TILE_N)
    row_ok = row < num_rows
    column_ok = column < N
    wide_row = row.to(tl.int64)
    matrix_row = head.to(tl.int64) * N + column

    TURNS: tl.constexpr = (K + TILE_K - 1) // TILE_K
    EACH: tl.constexpr = (TURNS + PARTS - 1) // PARTS
    if PARTS == 1:
        begin = 0
        end = K
    else:
        begin = part * (EACH * TILE_K)
        end = tl.minimum(begin + EACH * TILE_K, K)
    depth = tl.arange(0, TILE_K)
    x_line = x + (wide_row * (HEADS * K) + head * K)[:, None]
    total = tl.zeros([TILE_T, TILE_N], tl.float32)
    for k in range(begin, end, TILE_K):
        if K % TILE_K == 0:
            x_ok = row_ok[:, None]
        else:
            x_ok = row_ok[:, None] & (k + depth < K)[None, :]
        rows = tl.load(x_line + (k + depth)[None, :], mask=x_ok, other=0.0)
        if GROUP:
            places = (matrix_row * (K // 8))[:, None] + (k // 8 + tl.arange(0, TILE_K // 8))[None, :]
            words = weight.to(tl.pointer_type(tl.int32)) + places
            if N % TILE_N == 0:
                packed = tl.load(words)
            else:
                packed = tl.load(words, mask=column_ok[:, None], other=0)
            numbers = eight(packed, rows.dtype).reshape(TILE_N, TILE_K)
            scale = tl.load(scales + matrix_row * (K // GROUP) + k // GROUP, mask=column_ok, other=0.0)
            total += tl.dot(rows, tl.trans(numbers), input_precision="ieee") * scale[None, :]
        else:
            places = (matrix_row * K)[:, None] + (k + depth)[None, :]
            if N % TILE_N == 0 and K % TILE_K == 0:
                numbers = tl.load(weight + places)
            else:
                weight_ok = column_ok[:, None] & (k + depth < K)[None, :]
                numbers = tl.load(weight + places, mask=weight_ok, other=0.0)
            total = tl.dot(rows, tl.trans(numbers.to(rows.dtype)), total, input_precision="ieee")

    ok = row_ok[:, None] & column_ok[None, :]
    if PARTS == 1:
        if SCALED:
            total *= tl.load(scales + matrix_row, mask=column_ok, other=0.0)[None, :]
        if BIAS:
            total += tl.load(bias + matrix_row, mask=column_ok, other=0.0)[None, :]
        place = (wide_row * (HEADS * N))[:, None] + matrix_row[None, :]
        if RESIDUAL:
            total += tl.load(residual + place, mask=ok, other=0.0).to(tl.float32)
        tl.store(out + place, total.to(out.dtype.element_ty), mask=ok)
    else:
        place = ((wide_row * PARTS + part) * (HEADS * N))[:, None] + matrix_row[None, :]
        tl.store(out + place, total, mask=ok)


@triton.jit
def add_parts(
    out,
    parts,
    scales,
    bias,
    residual,
    WIDTH: tl.constexpr,
    PARTS: tl.constexpr,
    SCALED: tl.constexpr,
    BIAS: tl.constexpr,
    RESIDUAL: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Add the parts `[T, PARTS, WIDTH]` that `linear` left, in their order, and apply scales, bias and residual.

    Grid: (T, chunks of WIDTH, 1). `out` and `residual` are `[T, WIDTH]`, `scales` and `bias` float32 `[WIDTH]`.
    """
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * CHUNK + tl.arange(0, CHUNK)
    ok = column < WIDTH
    total = tl.load(parts + row * (PARTS * WIDTH) + column, mask=ok, other=0.0)
    for part in tl.static_range(1, PARTS):
        total += tl.load(parts + (row * PARTS + part) * WIDTH + column, mask=ok, other=0.0)
    if SCALED:
        total *= tl.load(scales + column, mask=ok, other=0.0)
    if BIAS:
        total += tl.load(bias + column, mask=ok, other=0.0)
    if RESIDUAL:
        total += tl.load(residual + row * WIDTH + column, mask=ok, other=0.0).to(tl.float32)
    tl.store(out + row * WIDTH + column, total.to(out.dtype.element_ty), mask=ok)
