"""Products with matrices of weights: the kernels that compute them, and their launches.

Owns their specs and the memory of sums in parts. Never imports Triton, and never chooses a tile.
"""

from __future__ import annotations

from trident_backend.engine.gpu.program import Argument, Count, Extent
from trident_compiler.cuda.builder import NOTHING, ONE, LaunchMaker, count, value
from trident_compiler.cuda.kernel_spec import KernelSpec
from trident_compiler.cuda.linear_tiles import Division, Matrix, divisions
from trident_compiler.cuda.targets import Capability

#: Numbers that a program of `add_parts` adds.
_CHUNK = 512


def linear_launches(
    make: LaunchMaker,
    matrix: Matrix,
    x: Argument,
    weight: Argument,
    out: Argument,
    *,
    compute: str,
    out_dtype: str,
    capability: Capability,
    max_rows: int,
    scales: Argument = NOTHING,
    bias: Argument = NOTHING,
    residual: Argument = NOTHING,
) -> None:
    """Add the launches of `x @ weight.T + bias + residual`, of which a step takes those for its number of rows.

    Args:
        make: takes them.
        matrix: of the weights.
        x: `[rows, heads * in]` in the type of activations.
        weight: `[heads, out, in]`.
        out: `[rows, heads * out]`; may be `residual`.
        compute: Triton's type of activations.
        out_dtype: Triton's type of `out`.
        capability: of the GPU.
        max_rows: rows of a step, at most.
        scales: float32, `[heads, out]`, or `[heads, out, groups]` of int4.
        bias: float32 `[heads, out]`.
        residual: `[rows, heads * out]` in the type of activations.
    """
    width = matrix.num_heads * matrix.out_size
    flags = {"BIAS": bias != NOTHING, "RESIDUAL": residual != NOTHING, "SCALED": matrix.has_row_scales}
    follows = {"scales": scales, "bias": bias, "residual": residual}
    types = {"scales": "*fp32", "bias": "*fp32", "residual": f"*{compute}"}
    for each in divisions(matrix, compute, capability, max_rows):
        divided = each.parts > 1
        target = out
        if divided:
            num_rows = min(each.most or max_rows, max_rows)
            target = value(make.value(num_rows * each.parts * width, "fp32", Count.ONE))
        spec = _product(matrix, each, compute, "fp32" if divided else out_dtype, flags)
        grid = (
            Extent(make.counted, each.tile.rows, -(-matrix.out_size // each.tile.columns)),
            Extent(times=each.parts),
            Extent(times=matrix.num_heads),
        )
        arguments = {"out": target, "x": x, "weight": weight, "num_rows": count(make.counted), **follows}
        make.launch(spec, grid, arguments, each.least, each.most)
        if divided:
            constants = {**flags, "WIDTH": width, "PARTS": each.parts, "CHUNK": _CHUNK}
            spec = KernelSpec.of("linear.add_parts", {"out": f"*{out_dtype}", "parts": "*fp32", **types}, constants)
            grid = (Extent(make.counted), Extent(times=-(-width // _CHUNK)), ONE)
            make.launch(spec, grid, {"out": out, "parts": target, **follows}, each.least, each.most)


def _product(matrix: Matrix, division: Division, compute: str, out_dtype: str, flags: dict[str, bool]) -> KernelSpec:
    """Return the kernel of a product, or of its parts."""
    tile = division.tile
    types = {
        "out": f"*{out_dtype}",
        "x": f"*{compute}",
        "weight": f"*{matrix.dtype}",
        "scales": "*fp32",
        "bias": "*fp32",
        "residual": f"*{compute}",
        "num_rows": "i32",
    }
    constants = {
        "K": matrix.in_size,
        "N": matrix.out_size,
        "HEADS": matrix.num_heads,
        "GROUP": matrix.group,
        # What is of the whole sum is `add_parts`' where there are parts.
        **(flags if division.parts == 1 else dict.fromkeys(flags, False)),
        "PARTS": division.parts,
        "TILE_T": tile.rows,
        "TILE_N": tile.columns,
        "TILE_K": tile.depth,
        "BAND": tile.band,
    }
    return KernelSpec.of("linear.linear", types, constants, tile.num_warps, tile.num_stages)
