"""Kernels of rows: norms, rotary embedding, and gathering.

Owns their specs, and which part of a row a program has. Never imports Triton, and never allocates a value.
"""

from __future__ import annotations

from trident_backend.engine.gpu.program import Argument, Extent
from trident_compiler.cuda.builder import NOTHING, ONE, LaunchMaker, number
from trident_compiler.cuda.kernel_spec import KernelSpec
from trident_compiler.cuda.programs import CHUNK, power, warps

#: Most numbers of one program that has several heads.
_TILE = 2048
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
    dim_p = power(dim)
    tile = min(power(heads), max(1, _TILE // dim_p))
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
    spec = KernelSpec.of("norms.norm", types, constants, warps(tile * dim_p))
    arguments = {"out": out, "x": x, "scale": scale, "bias": bias, "epsilon": number(epsilon)}
    make.launch(spec, (Extent(make.counted), Extent(times=-(-heads // tile)), ONE), arguments)


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
    half_p = power(rotated // 2)
    tile = min(power(heads), max(1, _TILE // (2 * half_p)))
    types = {"out": f"*{dtype}", "x": f"*{dtype}", "positions": "*i32", "cosines": _FLOATS, "sines": _FLOATS}
    constants = {
        "HEADS": heads,
        "DIM": dim,
        "ROTATED": rotated,
        "TILE": tile,
        "HALF_P": half_p,
        "REST_P": power(max(1, dim - rotated)),
    }
    spec = KernelSpec.of("rotary.rotate", types, constants, warps(tile * half_p))
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
    chunk = min(power(width), CHUNK)
    spec = KernelSpec.of("rows.gather", types, {"WIDTH": width, "OFFSET": offset, "CHUNK": chunk}, warps(chunk))
    grid = (Extent(make.counted), Extent(times=-(-width // chunk)), ONE)
    make.launch(spec, grid, {"out": out, "table": table, "indices": indices})
