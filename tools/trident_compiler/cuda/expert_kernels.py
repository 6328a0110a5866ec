"""Kernels of mixtures of experts: the choice, products with chosen experts, and the sum of their outputs.

Owns their specs, and how products are divided for each number of tokens: few tokens bring an expert few rows each.
Never imports Triton, and never allocates a value.
"""

from __future__ import annotations

from collections.abc import Iterator

from trident_backend.engine.gpu.program import Argument, Extent
from trident_compiler.cuda.builder import NOTHING, ONE, LaunchMaker, count
from trident_compiler.cuda.kernel_spec import KernelSpec
from trident_compiler.cuda.linear_tiles import Matrix, Tile
from trident_compiler.cuda.targets import Capability, shared_limit
from trident_compiler.families.words import Routing, Scoring

#: The numbers of ways to score in `kernels.experts`.
_SCORINGS = {Scoring.SOFTMAX: 0, Scoring.SOFTMAX_OF_CHOSEN: 1, Scoring.SIGMOID: 2}
_FLOATS, _IDS = "*fp32", "*i32"
#: Pairs that a program of `group` looks at together, and numbers that one of `combine` adds up.
_BLOCK, _CHUNK = 1024, 512
#: An expert's rows, if all experts have as many, up to which tiles are small.
_FEW_ROWS = 16
#: Experts' rows grow by so much from one range of numbers of tokens to the next, of which each has a grid of its own.
_GROWTH = 4
_LARGE_MEMORY = 128 << 10


def route_launch(
    make: LaunchMaker,
    routing: Routing,
    logits: Argument,
    chosen: Argument,
    shares: Argument,
    *,
    dtype: str,
    bias: Argument = NOTHING,
) -> None:
    """Add the choice of each row's experts.

    Args:
        make: takes the launch.
        routing: how they are chosen.
        logits: `[rows, experts]`.
        chosen: int32 `[rows, chosen]`.
        shares: float32 `[rows, chosen]`.
        dtype: Triton's type of the logits.
        bias: float32 `[experts]`, on the choice.
    """
    size = routing.num_experts // routing.num_groups
    constants = {
        "GROUPS": routing.num_groups,
        "SIZE": size,
        "CHOSEN": routing.num_chosen,
        "CHOSEN_GROUPS": routing.num_chosen_groups,
        "GROUP_TOP": routing.group_top,
        "SCORING": _SCORINGS[routing.scoring],
        "BIAS": bias != NOTHING,
        "NORMALISED": routing.normalised,
        "EPSILON": routing.sum_epsilon,
        "FACTOR": routing.factor,
        "GROUPS_P": _power(routing.num_groups),
        "SIZE_P": _power(size),
        "CHOSEN_P": _power(routing.num_chosen),
    }
    types = {"chosen": _IDS, "shares": _FLOATS, "logits": f"*{dtype}", "bias": _FLOATS}
    spec = KernelSpec.of("experts.route", types, constants, num_warps=1)
    arguments = {"chosen": chosen, "shares": shares, "logits": logits, "bias": bias}
    make.launch(spec, (Extent(make.counted), ONE, ONE), arguments)


def group_launch(make: LaunchMaker, routing: Routing, chosen: Argument, order: Argument, counts: Argument) -> None:
    """Add the ordering of pairs by their expert.

    Args:
        make: takes the launch.
        routing: has the numbers of experts.
        chosen: int32 `[rows, chosen]`.
        order: int32 `[rows, chosen]`: the pairs of the first expert, those of the second, and so on.
        counts: int32 `[experts]`: how many each has.
    """
    types = {"order": _IDS, "counts": _IDS, "chosen": _IDS, "num_rows": "i32"}
    spec = KernelSpec.of("experts.group", types, {"CHOSEN": routing.num_chosen, "BLOCK": _BLOCK})
    arguments = {"order": order, "counts": counts, "chosen": chosen, "num_rows": count(make.counted)}
    make.launch(spec, (Extent(times=routing.num_experts), ONE, ONE), arguments)


def expert_launches(
    make: LaunchMaker,
    matrix: Matrix,
    x: Argument,
    weight: Argument,
    out: Argument,
    *,
    num_chosen: int,
    order: Argument,
    counts: Argument,
    x_is_shared: bool,
    compute: str,
    capability: Capability,
    max_rows: int,
    scales: Argument = NOTHING,
    bias: Argument = NOTHING,
) -> None:
    """Add the launches of the products of pairs with their experts' matrices, of which a step takes one.

    Args:
        make: takes them.
        matrix: of the weights; its heads are the experts.
        x: `[rows, in]` if `x_is_shared` by a row's experts, else `[rows, chosen, in]`.
        weight: `[experts, out, in]`.
        out: `[rows, chosen, out]`.
        num_chosen: experts of a row.
        order: as `group_launch` leaves it; so is `counts`.
        counts: see there.
        x_is_shared: see there.
        compute: Triton's type of activations.
        capability: of the GPU.
        max_rows: of a step.
        scales: as `linear_launches` has them, for each expert.
        bias: float32 `[experts, out]`.
    """
    types = {
        "out": f"*{compute}",
        "x": f"*{compute}",
        "weight": f"*{matrix.dtype}",
        "scales": _FLOATS,
        "bias": _FLOATS,
        "order": _IDS,
        "counts": _IDS,
    }
    arguments = {
        "out": out,
        "x": x,
        "weight": weight,
        "scales": scales,
        "bias": bias,
        "order": order,
        "counts": counts,
    }
    for least, most in _ranges(matrix.num_heads, num_chosen, max_rows):
        tile = _tile(matrix, compute, capability, least * num_chosen // matrix.num_heads)
        constants = {
            "K": matrix.in_size,
            "N": matrix.out_size,
            "EXPERTS": matrix.num_heads,
            "DIVISOR": num_chosen if x_is_shared else 1,
            "GROUP": matrix.group,
            "SCALED": matrix.has_row_scales,
            "BIAS": bias != NOTHING,
            "EXPERTS_P": _power(matrix.num_heads),
            "TILE_T": tile.rows,
            "TILE_N": tile.columns,
            "TILE_K": tile.depth,
        }
        spec = KernelSpec.of("experts.linear", types, constants, tile.num_warps, tile.num_stages)
        tiles = _tiles_of(matrix.num_heads, num_chosen, tile.rows, least, most or max_rows)
        grid = (Extent(make.counted, *tiles), Extent(times=-(-matrix.out_size // tile.columns)), ONE)
        make.launch(spec, grid, arguments, least, most)


def combine_launch(
    make: LaunchMaker,
    outputs: Argument,
    shares: Argument,
    out: Argument,
    *,
    num_chosen: int,
    width: int,
    dtype: str,
) -> None:
    """Add the weighted sum of each row's outputs.

    Args:
        make: takes the launch.
        outputs: `[rows, chosen, width]`.
        shares: float32 `[rows, chosen]`.
        out: `[rows, width]`.
        num_chosen: experts of a row.
        width: numbers of an output.
        dtype: Triton's type of the outputs and of `out`.
    """
    chunk = min(_power(width), _CHUNK)
    types = {"out": f"*{dtype}", "outputs": f"*{dtype}", "shares": _FLOATS}
    spec = KernelSpec.of("experts.combine", types, {"CHOSEN": num_chosen, "WIDTH": width, "CHUNK": chunk})
    grid = (Extent(make.counted), Extent(times=-(-width // chunk)), ONE)
    make.launch(spec, grid, {"out": out, "outputs": outputs, "shares": shares})


def _ranges(num_experts: int, num_chosen: int, max_rows: int) -> Iterator[tuple[int, int]]:
    """Yield ranges of numbers of rows; the last has no bound. Up to the first bound there are fewer pairs than experts.

    The last begins where experts have so many rows that tiles which are not full do not count.
    """
    least, most = 1, -(-num_experts // num_chosen)
    while most < max_rows and least * num_chosen < num_experts * _FEW_ROWS * _GROWTH:
        yield least, most
        least, most = most + 1, most * _GROWTH
    yield least, 0


def _tiles_of(num_experts: int, num_chosen: int, tile: int, least: int, most: int) -> tuple[int, int]:
    """Return `size` and `times`: `times * ceil(rows / size)` tiles are enough for the rows of a range.

    Each pair may be an expert's only one, which is the fewest tiles while there are few pairs; beyond that, of each
    expert one tile may not be full.
    """
    times = num_chosen + -(-num_experts * tile // least)
    return (1, num_chosen) if num_chosen * most <= times * -(-most // tile) else (tile, times)


def _tile(matrix: Matrix, compute: str, capability: Capability, rows: int) -> Tile:
    """Return the tile where an expert has so many rows."""
    if compute == "fp32":
        return Tile(16, 32, 32, 4, 2) if rows < _FEW_ROWS else Tile(64, 64, 32, 4, 2)
    is_large = shared_limit(capability) >= _LARGE_MEMORY
    depth = matrix.group or (128 if is_large else 64)
    if rows < _FEW_ROWS:
        return Tile(16, 64, depth, 4, 4)
    return Tile(64, 128, min(64, depth), 4, 4 if is_large else 3)


def _power(size: int) -> int:
    """Return the least power of two that is not less."""
    return 1 << (size - 1).bit_length()
