"""Products with matrices of weights: how they are divided for each number of rows.

Owns tiles, by what a GPU's multiprocessor holds, and the inputs in parts where there are too few outputs to fill a GPU.
Never makes a kernel, and never decides a format.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from trident_compiler.cuda.targets import Capability, target_of
from trident_compiler.weights import formats
from trident_compiler.weights.weights import Weight

#: Triton's types of stored weights; int4 are bytes of two.
DTYPES = {
    formats.BF16: "bf16",
    formats.FP16: "fp16",
    formats.FP32: "fp32",
    formats.INT8: "i8",
    formats.INT4: "i8",
    formats.FP8: "fp8e4nv",
}
#: Bounds of the numbers of rows that are divided alike.
_BOUNDS = (16, 64, 128, 256, 512, 1024, 2048)
#: Up to so many rows the inputs may be divided; the parts of more would take much memory.
_MOST_DIVIDED = 512
#: Most parts of the inputs, and the least turns of each part's loop.
_MOST_PARTS, _LEAST_TURNS = 16, 4
#: A multiprocessor with so many bytes of shared memory has room for more turns.
_LARGE_MEMORY = 128 << 10
#: The stored types that are converted before they are multiplied.
_QUANTIZED = ("i8", "fp8e4nv")
#: The major number of GPUs that multiply from tensor memory.
_BLACKWELL = 10


@dataclass(frozen=True)
class Matrix:
    """The matrices of a linear layer, one for each head.

    Args:
        in_size: inputs of one.
        out_size: outputs of one.
        num_heads: how many there are; a head's inputs are multiplied by its own.
        dtype: Triton's name of the stored type.
        group: numbers of 4 bits that share a scale; 0 where numbers have whole bytes.
    """

    in_size: int
    out_size: int
    num_heads: int = 1
    dtype: str = "bf16"
    group: int = 0

    @classmethod
    def of(cls, weight: Weight) -> Matrix:
        """Return that of a weight `[out, in]`, or of a stack `[heads, out, in]`."""
        *heads, out_size, in_size = weight.shape
        group = 0
        if weight.format == formats.INT4:
            assert weight.scales is not None
            assert weight.zero_points is None, f"{weight.name}: kernels take symmetric int4"
            group = in_size // weight.scales.shape[-1]
        return cls(in_size, out_size, heads[0] if heads else 1, DTYPES[weight.format], group)

    @property
    def has_row_scales(self) -> bool:
        """Whether each output has one scale."""
        return not self.group and self.dtype in _QUANTIZED


@dataclass(frozen=True)
class Tile:
    """A program's part of the outputs.

    Args:
        rows: of the activations.
        columns: outputs.
        depth: inputs of one turn of its loop.
        num_warps: of it.
        num_stages: how many turns' loads are on the way.
        band: tiles of rows that use the same weights one after another.
    """

    rows: int
    columns: int
    depth: int
    num_warps: int
    num_stages: int
    band: int = 1


@dataclass(frozen=True)
class Division:
    """The division of a product for some numbers of rows.

    Args:
        least: rows.
        most: rows; 0 for no bound.
        tile: of a program.
        parts: into which the inputs are divided.
    """

    least: int
    most: int
    tile: Tile
    parts: int


def divisions(matrix: Matrix, compute: str, capability: Capability, max_rows: int) -> list[Division]:
    """Return how a product is divided, for every number of rows up to `max_rows`, in ascending order.

    Args:
        matrix: of the weights.
        compute: Triton's type of the activations.
        capability: of the GPU.
        max_rows: rows of a step, at most.
    """
    found: list[Division] = []
    for least, most in _ranges(max_rows):
        tile, parts = _choice(matrix, compute, capability, least, most or max_rows)
        if found and (found[-1].tile, found[-1].parts) == (tile, parts):
            found[-1] = replace(found[-1], most=most)
        else:
            found.append(Division(least, most, tile, parts))
    return found


def _ranges(max_rows: int) -> Iterator[tuple[int, int]]:
    """Yield the ranges of numbers of rows up to `max_rows`; the last has no bound."""
    least = 1
    for most in _BOUNDS:
        if most >= max_rows:
            break
        yield least, most
        least = most + 1
    yield least, 0


def _choice(matrix: Matrix, compute: str, capability: Capability, least: int, most: int) -> tuple[Tile, int]:
    """Return the tile and the number of parts for a range of numbers of rows."""
    target = target_of(capability)
    wanted = target.num_multiprocessors
    few, middle, wide, medium, large = _tiles(matrix, compute, capability)
    if most <= few.rows:
        return few, _parts(matrix, few, least, wanted)
    if most <= middle.rows:
        tile = wide if _programs(matrix, wide, least) >= wanted else middle
        return tile, _parts(matrix, tile, least, wanted)
    if 4 * _programs(matrix, large, least) >= 3 * wanted:
        return large, 1
    return medium, _parts(matrix, medium, least, wanted) if most <= _MOST_DIVIDED else 1


def _programs(matrix: Matrix, tile: Tile, num_rows: int) -> int:
    return -(-num_rows // tile.rows) * -(-matrix.out_size // tile.columns) * matrix.num_heads


def _parts(matrix: Matrix, tile: Tile, num_rows: int, wanted: int) -> int:
    """Return into how many parts the inputs are divided, so that there are so many programs."""
    turns = -(-matrix.in_size // tile.depth)
    parts = min(-(-wanted // _programs(matrix, tile, num_rows)), turns // _LEAST_TURNS, _MOST_PARTS)
    # No part is left without a turn.
    return -(-turns // -(-turns // max(1, parts)))


def _tiles(matrix: Matrix, compute: str, capability: Capability) -> tuple[Tile, Tile, Tile, Tile, Tile]:
    """Return the tiles for up to 16 rows, for up to 64 with few and many outputs, and for more with few and many."""
    if compute == "fp32":
        middle, more = Tile(32, 32, 32, 4, 2), Tile(64, 64, 32, 4, 2, 8)
        return Tile(16, 32, 32, 4, 2), middle, middle, more, more
    is_large = target_of(capability).shared_limit >= _LARGE_MEMORY
    depth = matrix.group or (128 if is_large else 64)
    few, middle = Tile(16, 64, depth, 4, 4), Tile(64, 64, min(64, depth), 4, 4)
    medium = Tile(128, 64, min(64, depth), 4, 4 if is_large else 3, 8)
    # Scaled sums of groups, and on 10.x converted weights, take the registers of a larger tile: it would be slower.
    converts = matrix.dtype in _QUANTIZED and capability[0] == _BLACKWELL
    if matrix.group or converts:
        return few, middle, middle, medium, medium
    # More columns read less of the activations for each weight.
    return few, middle, replace(middle, columns=128), medium, replace(medium, columns=128, num_warps=8)
