"""Kernels of rows: norms, functions of single numbers, rotary embedding, copies of columns, and gathering.

Owns their specs, and which part of a row a program has. Never imports Triton, and never allocates a value.
"""

from __future__ import annotations

from collections.abc import Mapping

from trident_backend.engine.cuda.program import Argument, Extent
from trident_compiler.cuda.builder import NOTHING, ONE, LaunchMaker, number
from trident_compiler.cuda.kernel_spec import KernelSpec
from trident_compiler.families.words import Activation

#: The activations' numbers in `kernels.pointwise`.
ACTIVATIONS = {
    Activation.SILU: 0,
    Activation.GELU: 1,
    Activation.GELU_TANH: 2,
    Activation.RELU: 3,
    Activation.RELU_SQUARED: 4,
    Activation.SIGMOID: 5,
    Activation.TANH: 6,
}
#: The operations' numbers in `kernels.pointwise`.
ADD, MULTIPLY = 0, 1
#: Most numbers of one program that has a part of a row, and of one that has several heads.
_CHUNK, _TILE = 1024, 2048
_FLOATS = "*fp32"


def norm_launch(
    make: LaunchMaker,
    x: Argument,
    out: Argument,
    *,
    dim: int,
    epsilon: float,
    dtype: str,
    heads: int = 1,
    is_centred: bool = False,
    scale: Argument = NOTHING,
    scale_heads: int = 1,
    bias: Argument = NOTHING,
    bias_heads: int = 1,
    out_dtype: str = "",
) -> None:
    """Add a norm over the last axis of `[rows, heads, dim]`.

    Args:
        make: takes the launch.
        x: what is normed.
        out: of the same shape.
        dim: size of the last axis.
        epsilon: is added to the mean square.
        dtype: Triton's type of x.
        heads: of a row.
        is_centred: the mean is subtracted first, as a layer norm does.
        scale: float32 `[scale_heads, dim]`; nothing is 1.
        scale_heads: 1, or as many as there are heads.
        bias: float32 `[bias_heads, dim]`; nothing is 0.
        bias_heads: 1, or as many as there are heads.
        out_dtype: Triton's type of out, where it is another.
    """
    assert scale_heads in (1, heads), f"{scale_heads} heads' scales for {heads} heads"
    assert bias_heads in (1, heads), f"{bias_heads} heads' biases for {heads} heads"
    dim_p = _power(dim)
    tile = min(_power(heads), max(1, _TILE // dim_p))
    types = {"out": f"*{out_dtype or dtype}", "x": f"*{dtype}", "scale": _FLOATS, "bias": _FLOATS, "epsilon": "fp32"}
    constants = {
        "HEADS": heads,
        "DIM": dim,
        "CENTRED": is_centred,
        "SCALE": scale != NOTHING,
        "SCALE_HEADS": scale_heads,
        "BIAS": bias != NOTHING,
        "BIAS_HEADS": bias_heads,
        "TILE": tile,
        "DIM_P": dim_p,
    }
    spec = KernelSpec.of("norms.norm", types, constants, _warps(tile * dim_p))
    arguments = {"out": out, "x": x, "scale": scale, "bias": bias, "epsilon": number(epsilon)}
    make.launch(spec, (Extent(make.counted), Extent(times=-(-heads // tile)), ONE), arguments)


def activation_launch(
    make: LaunchMaker, kind: Activation, x: Argument, out: Argument, *, width: int, dtype: str
) -> None:
    """Add an activation of `x [rows, width]`; `out` may be `x`."""
    arguments = {"out": out, "x": x}
    types = dict.fromkeys(arguments, f"*{dtype}")
    _pointwise(make, "unary", arguments, types=types, constants={"OP": ACTIVATIONS[kind]}, width=width)


def sum_launch(make: LaunchMaker, a: Argument, b: Argument, out: Argument, *, width: int, dtype: str) -> None:
    """Add the sum of two values `[rows, width]`; `out` may be one of them."""
    arguments = {"out": out, "a": a, "b": b}
    types = dict.fromkeys(arguments, f"*{dtype}")
    _pointwise(make, "binary", arguments, types=types, constants={"OP": ADD, "B_WIDTH": width}, width=width)


def product_launch(
    make: LaunchMaker, a: Argument, b: Argument, out: Argument, *, width: int, b_width: int, dtype: str
) -> None:
    """Add the product of `a [rows, width]` and `b [rows, b_width]`, whose width is the same or 1; `out` may be `a`."""
    assert b_width in (1, width), f"{b_width} columns for {width}"
    arguments = {"out": out, "a": a, "b": b}
    types = dict.fromkeys(arguments, f"*{dtype}")
    _pointwise(make, "binary", arguments, types=types, constants={"OP": MULTIPLY, "B_WIDTH": b_width}, width=width)


def numbers_launch(
    make: LaunchMaker,
    x: Argument,
    out: Argument,
    *,
    width: int,
    dtype: str,
    factor: float = 1.0,
    term: float = 0.0,
    low: float | None = None,
    high: float | None = None,
) -> None:
    """Add `x * factor + term` of `[rows, width]`, at least `low` and at most `high` where given; `out` may be `x`."""
    arguments = {
        "out": out,
        "x": x,
        "factor": number(factor),
        "term": number(term),
        "low": number(low or 0.0),
        "high": number(high or 0.0),
    }
    types = {**dict.fromkeys(("out", "x"), f"*{dtype}"), **dict.fromkeys(("factor", "term", "low", "high"), "fp32")}
    constants = {"AT_LEAST": low is not None, "AT_MOST": high is not None}
    _pointwise(make, "numbers", arguments, types=types, constants=constants, width=width)


def gated_launch(
    make: LaunchMaker, kind: Activation, gate: Argument, up: Argument, out: Argument, *, width: int, dtype: str
) -> None:
    """Add `activation(gate) * up` of `[rows, width]`; `out` may be either."""
    arguments = {"out": out, "gate": gate, "up": up}
    types = dict.fromkeys(arguments, f"*{dtype}")
    _pointwise(make, "gated", arguments, types=types, constants={"OP": ACTIVATIONS[kind]}, width=width)


def copy_columns_launch(
    make: LaunchMaker,
    x: Argument,
    out: Argument,
    *,
    width: int,
    x_row: int,
    out_row: int,
    dtype: str,
    x_at: int = 0,
    out_at: int = 0,
    heads: int = 1,
) -> None:
    """Add a copy of columns of every head: a slice, or one part of a concatenation.

    Args:
        make: takes the launch.
        x: `[rows, heads, x_row]`.
        out: `[rows, heads, out_row]`.
        width: columns to copy.
        x_row: numbers in a head of `x`.
        out_row: numbers in a head of `out`.
        dtype: Triton's type of both.
        x_at: the first column to copy.
        out_at: the column that it becomes.
        heads: of a row.
    """
    assert 0 <= x_at <= x_at + width <= x_row, f"columns {x_at} to {x_at + width} of {x_row}"
    assert 0 <= out_at <= out_at + width <= out_row, f"columns {out_at} to {out_at + width} of {out_row}"
    total = heads * width
    chunk = min(_power(total), _CHUNK)
    constants = {
        "HEADS": heads,
        "WIDTH": width,
        "OUT_ROW": out_row,
        "OUT_AT": out_at,
        "X_ROW": x_row,
        "X_AT": x_at,
        "CHUNK": chunk,
    }
    spec = KernelSpec.of("pointwise.copy_columns", {"out": f"*{dtype}", "x": f"*{dtype}"}, constants, _warps(chunk))
    grid = (Extent(make.counted), Extent(times=-(-total // chunk)), ONE)
    make.launch(spec, grid, {"out": out, "x": x})


def rotate_launch(
    make: LaunchMaker,
    x: Argument,
    out: Argument,
    *,
    positions: Argument,
    cosines: Argument,
    sines: Argument,
    heads: int,
    dim: int,
    rotated: int,
    dtype: str,
) -> None:
    """Add the rotation of the first `rotated` numbers of each head of `[rows, heads, dim]`.

    Args:
        make: takes the launch.
        x: the heads.
        out: of the same shape.
        positions: of each row, int32.
        cosines: float32 `[positions, rotated / 2]`; so are `sines`.
        sines: see there.
        heads: of a row.
        dim: size of a head.
        rotated: an even number of it.
        dtype: Triton's type of x and out.
    """
    assert 0 < rotated <= dim, f"{rotated} of {dim}"
    assert rotated % 2 == 0, f"{rotated} of {dim}"
    half_p = _power(rotated // 2)
    tile = min(_power(heads), max(1, _TILE // (2 * half_p)))
    types = {"out": f"*{dtype}", "x": f"*{dtype}", "positions": "*i32", "cosines": _FLOATS, "sines": _FLOATS}
    constants = {
        "HEADS": heads,
        "DIM": dim,
        "ROTATED": rotated,
        "TILE": tile,
        "HALF_P": half_p,
        "REST_P": _power(max(1, dim - rotated)),
    }
    spec = KernelSpec.of("rotary.rotate", types, constants, _warps(tile * half_p))
    arguments = {"out": out, "x": x, "positions": positions, "cosines": cosines, "sines": sines}
    make.launch(spec, (Extent(make.counted), Extent(times=-(-heads // tile)), ONE), arguments)


def gather_launch(
    make: LaunchMaker,
    table: Argument,
    indices: Argument,
    out: Argument,
    *,
    width: int,
    table_dtype: str,
    out_dtype: str,
    offset: int = 0,
) -> None:
    """Add the gathering of the rows `indices + offset` of `table [any, width]` into `out [rows, width]`.

    Args:
        make: takes the launch.
        table: a weight, or a value of tokens whose rows are wanted.
        indices: int32, one for each row of out.
        out: in `out_dtype`.
        width: numbers in a row.
        table_dtype: Triton's type of the table.
        out_dtype: Triton's type of out.
        offset: is added to every index.
    """
    types = {"out": f"*{out_dtype}", "table": f"*{table_dtype}", "indices": "*i32"}
    chunk = min(_power(width), _CHUNK)
    spec = KernelSpec.of("rows.gather", types, {"WIDTH": width, "OFFSET": offset, "CHUNK": chunk}, _warps(chunk))
    grid = (Extent(make.counted), Extent(times=-(-width // chunk)), ONE)
    make.launch(spec, grid, {"out": out, "table": table, "indices": indices})


def _pointwise(
    make: LaunchMaker,
    function: str,
    arguments: Mapping[str, Argument],
    *,
    types: Mapping[str, str],
    constants: Mapping[str, int | bool],
    width: int,
) -> None:
    """Add a launch with a program for each row and chunk of its columns."""
    chunk = min(_power(width), _CHUNK)
    spec = KernelSpec.of(f"pointwise.{function}", types, {**constants, "WIDTH": width, "CHUNK": chunk}, _warps(chunk))
    make.launch(spec, (Extent(make.counted), Extent(times=-(-width // chunk)), ONE), arguments)


def _warps(numbers: int) -> int:
    """Return how many warps share so many numbers: 8 for each thread, or more."""
    return min(16, max(1, numbers // 256))


def _power(size: int) -> int:
    """Return the least power of two that is not less."""
    return 1 << (size - 1).bit_length()
