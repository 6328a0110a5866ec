"""Kernels of single numbers: activations, sums and products, and copies of columns.

Owns their specs, and the numbers by which kernels know operations. Never imports Triton, and never allocates a value.
"""

from __future__ import annotations

from collections.abc import Mapping

from trident_backend.engine.gpu.program import Argument, Extent
from trident_compiler.cuda.builder import ONE, LaunchMaker, number
from trident_compiler.cuda.kernel_spec import KernelSpec
from trident_compiler.cuda.programs import CHUNK, power, warps
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
    chunk = min(power(total), CHUNK)
    constants = {
        "HEADS": heads,
        "WIDTH": width,
        "OUT_ROW": out_row,
        "OUT_AT": out_at,
        "X_ROW": x_row,
        "X_AT": x_at,
        "CHUNK": chunk,
    }
    spec = KernelSpec.of("pointwise.copy_columns", {"out": f"*{dtype}", "x": f"*{dtype}"}, constants, warps(chunk))
    grid = (Extent(make.counted), Extent(times=-(-total // chunk)), ONE)
    make.launch(spec, grid, {"out": out, "x": x})


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
    chunk = min(power(width), CHUNK)
    spec = KernelSpec.of(f"pointwise.{function}", types, {**constants, "WIDTH": width, "CHUNK": chunk}, warps(chunk))
    make.launch(spec, (Extent(make.counted), Extent(times=-(-width // chunk)), ONE), arguments)
