"""Functions of single numbers, and copies of columns, in the Triton language.

Owns the activations. Never mixes rows.
"""

import triton
import triton.language as tl

#: Activations, by the number that OP is.
SILU = tl.constexpr(0)
GELU = tl.constexpr(1)
GELU_TANH = tl.constexpr(2)
RELU = tl.constexpr(3)
RELU_SQUARED = tl.constexpr(4)
SIGMOID = tl.constexpr(5)
TANH = tl.constexpr(6)
#: Operations of two numbers, by the number that OP is.
ADD = tl.constexpr(0)
MULTIPLY = tl.constexpr(1)


@triton.jit
def tanh(x):
    """Return the hyperbolic tangent of float32, exact to a few units in the last place, for large numbers too."""
    size = tl.abs(x)
    small = tl.exp(-2.0 * size)
    far = (1.0 - small) / (1.0 + small)
    # Near 0 the difference above would lose digits; there the series is exact.
    square = x * x
    near = size * (1.0 + square * (-0.333333343 + square * (0.133333340 + square * -0.0539682544)))
    result = tl.where(size < 0.15, near, far)
    return tl.where(x < 0, -result, result)


@triton.jit
def activate(x, OP: tl.constexpr):
    """Return an activation of float32."""
    if OP == SILU:
        result = x / (1.0 + tl.exp(-x))
    elif OP == GELU:
        result = 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    elif OP == GELU_TANH:
        result = 0.5 * x * (1.0 + tanh(0.7978845608028654 * x * (1.0 + 0.044715 * x * x)))
    elif OP == RELU:
        result = tl.where(x < 0, 0.0, x)
    elif OP == RELU_SQUARED:
        result = tl.where(x < 0, 0.0, x * x)
    elif OP == SIGMOID:
        result = 1.0 / (1.0 + tl.exp(-x))
    else:
        tl.static_assert(OP == TANH)
        result = tanh(x)
    return result


@triton.jit
def unary(out, x, WIDTH: tl.constexpr, OP: tl.constexpr, CHUNK: tl.constexpr):
    """Apply an activation to `[T, WIDTH]`. Grid: (T, chunks of WIDTH, 1)."""
    column = tl.program_id(1) * CHUNK + tl.arange(0, CHUNK)
    place = tl.program_id(0).to(tl.int64) * WIDTH + column
    ok = column < WIDTH
    result = activate(tl.load(x + place, mask=ok, other=0.0).to(tl.float32), OP)
    tl.store(out + place, result.to(out.dtype.element_ty), mask=ok)


@triton.jit
def binary(out, a, b, WIDTH: tl.constexpr, B_WIDTH: tl.constexpr, OP: tl.constexpr, CHUNK: tl.constexpr):
    """Add or multiply `a [T, WIDTH]` and `b`, `[T, WIDTH]` or `[T, 1]`. Grid: (T, chunks of WIDTH, 1)."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * CHUNK + tl.arange(0, CHUNK)
    ok = column < WIDTH
    first = tl.load(a + row * WIDTH + column, mask=ok, other=0.0).to(tl.float32)
    if B_WIDTH == WIDTH:
        second = tl.load(b + row * WIDTH + column, mask=ok, other=0.0).to(tl.float32)
    else:
        tl.static_assert(B_WIDTH == 1)
        second = tl.load(b + row).to(tl.float32)
    if OP == ADD:
        result = first + second
    else:
        tl.static_assert(OP == MULTIPLY)
        result = first * second
    tl.store(out + row * WIDTH + column, result.to(out.dtype.element_ty), mask=ok)


@triton.jit
def numbers(
    out,
    x,
    factor,
    term,
    low,
    high,
    WIDTH: tl.constexpr,
    AT_LEAST: tl.constexpr,
    AT_MOST: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Compute `x * factor + term` of `[T, WIDTH]`, then at least `low` if AT_LEAST and at most `high` if AT_MOST.

    Grid: (T, chunks of WIDTH, 1).
    """
    column = tl.program_id(1) * CHUNK + tl.arange(0, CHUNK)
    place = tl.program_id(0).to(tl.int64) * WIDTH + column
    ok = column < WIDTH
    result = tl.load(x + place, mask=ok, other=0.0).to(tl.float32) * factor + term
    # Comparisons, and not minimum and maximum, so that NaN stays.
    if AT_MOST:
        result = tl.where(result > high, high, result)
    if AT_LEAST:
        result = tl.where(result < low, low, result)
    tl.store(out + place, result.to(out.dtype.element_ty), mask=ok)


@triton.jit
def gated(out, gate, up, WIDTH: tl.constexpr, OP: tl.constexpr, CHUNK: tl.constexpr):
    """Compute `activation(gate) * up` of `[T, WIDTH]`. Grid: (T, chunks of WIDTH, 1)."""
    column = tl.program_id(1) * CHUNK + tl.arange(0, CHUNK)
    place = tl.program_id(0).to(tl.int64) * WIDTH + column
    ok = column < WIDTH
    opening = tl.load(gate + place, mask=ok, other=0.0).to(tl.float32)
    other = tl.load(up + place, mask=ok, other=0.0).to(tl.float32)
    tl.store(out + place, (activate(opening, OP) * other).to(out.dtype.element_ty), mask=ok)


@triton.jit
def copy_columns(
    out,
    x,
    HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    OUT_ROW: tl.constexpr,
    OUT_AT: tl.constexpr,
    X_ROW: tl.constexpr,
    X_AT: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Copy WIDTH columns of `x [T, HEADS, X_ROW]` from X_AT on to those of `out [T, HEADS, OUT_ROW]` from OUT_AT on.

    Grid: (T, chunks of HEADS * WIDTH, 1).
    """
    token = tl.program_id(0).to(tl.int64)
    number = tl.program_id(1) * CHUNK + tl.arange(0, CHUNK)
    head = number // WIDTH
    column = number % WIDTH
    ok = number < HEADS * WIDTH
    copied = tl.load(x + (token * HEADS + head) * X_ROW + X_AT + column, mask=ok)
    tl.store(out + (token * HEADS + head) * OUT_ROW + OUT_AT + column, copied.to(out.dtype.element_ty), mask=ok)
