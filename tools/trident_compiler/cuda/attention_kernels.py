"""Kernels of attention: their specs for a kind of layers and a target.

Owns how large a tile is and how far its loads run ahead, by what a block of threads may have. Never imports Triton.
"""

from __future__ import annotations

from dataclasses import dataclass

from trident_backend.engine.gpu.program import ITEM_BYTES
from trident_compiler.cuda.kernel_spec import KernelSpec
from trident_compiler.cuda.targets import Capability, shared_limit
from trident_ensemble.contract.errors import BuildError

_FLOATS = "*fp32"
_INTS = "*i32"
#: A product's operands have so many rows and columns at least.
_LEAST = 16
#: Words of 32 bits that a program copies at a time: four times four by each of its threads.
_COPIED_WORDS = 4096
#: Rows that four warps multiply, and from which on groups of warps do.
_FEW_ROWS, _GROUP_ROWS = 32, 64
#: Rows of the largest tile.
_MOST_ROWS = 128
#: The largest head whose sums of 128 rows leave registers for the rest.
_LARGE_HEAD = 128
#: From this size of a value's head on, sums of 16 rows take the registers of eight warps.
_LATENT_HEAD = 512
#: What sums over a row and the table of blocks take.
_REDUCED_BYTES = 2560


@dataclass(frozen=True)
class AttentionSpecs:
    """The kernels of layers whose attention is alike.

    Args:
        write: `attention.write_cache`.
        few: `attention.attend` of small tiles.
        many: `attention.attend` of large tiles.
        merge_few: `attention.merge` of small tiles.
        merge_many: `attention.merge` of large tiles.
        few_rows: rows (tokens x heads of a part) of a small tile.
        many_rows: rows of a large tile.
        head_parts: into which each group's query heads are divided, as a tile cannot hold them all otherwise.
    """

    write: KernelSpec
    few: KernelSpec
    many: KernelSpec
    merge_few: KernelSpec
    merge_many: KernelSpec
    few_rows: int
    many_rows: int
    head_parts: int


@dataclass(frozen=True)
class _Tile:
    rows: int
    keys: int
    num_warps: int
    num_stages: int


@dataclass(frozen=True)
class _Operands:
    """What a tile multiplies: sizes of heads, rounded up, and types."""

    dim_p: int
    dim_v_p: int
    compute: str
    cache: str

    @property
    def has_large_heads(self) -> bool:
        """Whether sums of 128 rows leave too few registers for the rest."""
        return max(self.dim_p, self.dim_v_p) > _LARGE_HEAD

    @property
    def most_rows(self) -> int:
        """Rows whose sums fit into the registers of eight warps."""
        return _FEW_ROWS if self.dim_v_p >= _LATENT_HEAD else _MOST_ROWS

    @property
    def least_warps(self) -> int:
        """Warps of a block that have the registers for its sums, at least."""
        return 8 if self.dim_v_p >= _LATENT_HEAD else 4

    def shared_bytes(self, tile: _Tile, capability: Capability) -> int:
        """Return the shared memory that a block takes, not less than Triton gives it."""
        item, cached = ITEM_BYTES[self.compute], ITEM_BYTES[self.cache]
        # Products of warp groups (wgmma, tcgen05) have their operands in two buffers, those of warps in one; the table
        # of blocks, which is read before the keys are, takes one of the stages of the latter.
        by_groups = _has_groups(capability) and tile.rows >= _GROUP_ROWS
        num_buffers = tile.num_stages if by_groups else max(1, tile.num_stages - 2)
        query = tile.rows * self.dim_p * item * (2 if self.compute == "fp32" else 1)
        keys = num_buffers * tile.keys * (self.dim_p + self.dim_v_p) * cached
        converted = tile.keys * max(self.dim_p, self.dim_v_p) * item if self.cache != self.compute else 0
        return query + keys + converted + tile.rows * tile.keys * item + _REDUCED_BYTES


def attention_specs(
    *,
    num_kv_heads: int,
    group: int,
    head_dim: int,
    v_head_dim: int,
    block_size: int,
    compute: str,
    cache: str,
    capability: Capability,
    has_window: bool = False,
    has_softcap: bool = False,
    has_sinks: bool = False,
    has_alibi: bool = False,
) -> AttentionSpecs:
    """Return the kernels of layers whose attention is alike.

    Args:
        num_kv_heads: heads of keys and values.
        group: query heads that share one of them.
        head_dim: numbers of a query's and a key's head.
        v_head_dim: numbers of a value's head.
        block_size: tokens of a block of the cache.
        compute: Triton's type of queries and results.
        cache: Triton's type of the cache; where it is another, keys and values are divided by factors in it.
        capability: the target.
        has_window: a token sees the last `window` tokens.
        has_softcap: scores are capped by `softcap`.
        has_sinks: `sinks`, float32 `[heads]`, take part in the softmax.
        has_alibi: distances are weighted by `slopes`, float32 `[heads]`.

    Raises:
        BuildError: kernels are not compiled for this compute capability, or its shared memory is too small for heads
            of this size.
    """
    dim_p, dim_v_p = _power(head_dim), _power(v_head_dim)
    operands = _Operands(dim_p, dim_v_p, compute, cache)
    found = _divided(group, operands, capability)
    if found is None:
        raise BuildError(
            f"--engine cuda: attention of {group} heads of {head_dim} numbers for each head of keys in {compute} does "
            f"not fit into the {shared_limit(capability)} bytes of shared memory that a block has on compute "
            f"capability {capability[0]}.{capability[1]}; build with another precision, for another GPU, or with "
            "another engine"
        )
    head_parts, few, many = found
    sizes = {"KV_HEADS": num_kv_heads, "DIM_V": v_head_dim, "DIM_V_P": dim_v_p}
    cached = {**sizes, "DIM": head_dim, "DIM_P": dim_p, "BLOCK": block_size, "QUANT": cache != compute}
    grouped = {"GROUP": group, "PARTS": head_parts}
    features = {"WINDOW": has_window, "CAP": has_softcap, "SINKS": has_sinks, "ALIBI": has_alibi}

    def attend(tile: _Tile) -> KernelSpec:
        constants = {**cached, **features, **grouped, "ROWS": tile.rows, "KEYS": tile.keys}
        types = _attend_types(compute, cache)
        return KernelSpec.of("attention.attend", types, constants, tile.num_warps, tile.num_stages)

    def merge(tile: _Tile) -> KernelSpec:
        types = {"out": f"*{compute}", "partial_out": _FLOATS, "partial_stats": _FLOATS, "merges": _INTS}
        return KernelSpec.of("attention.merge", types, {**sizes, **grouped, "ROWS": tile.rows})

    heads_p = _power(num_kv_heads, least=1)
    write_types = {
        **dict.fromkeys(("keys", "values"), f"*{compute}"),
        **dict.fromkeys(("key_cache", "value_cache"), f"*{cache}"),
        "places": _INTS,
        **dict.fromkeys(("key_factor", "value_factor"), "fp32"),
    }
    write_warps = 4 if heads_p * max(dim_p, dim_v_p) <= _COPIED_WORDS else 8
    return AttentionSpecs(
        write=KernelSpec.of("attention.write_cache", write_types, {**cached, "HEADS_P": heads_p}, write_warps),
        few=attend(few),
        many=attend(many),
        merge_few=merge(few),
        merge_many=merge(many),
        few_rows=few.rows,
        many_rows=many.rows,
        head_parts=head_parts,
    )


def copy_blocks_spec() -> KernelSpec:
    """Return the kernel that copies blocks of the cache, of every layer and any type."""
    types = {"pool": _INTS, "geometry": "*i64", "copies": _INTS, "num_copies": "i32"}
    return KernelSpec.of("attention.copy_blocks", types, {"CHUNK": _COPIED_WORDS}, num_warps=8)


def _divided(group: int, operands: _Operands, capability: Capability) -> tuple[int, _Tile, _Tile] | None:
    """Return into how few parts a group's heads are divided, and the small and the large tile; None if none fits."""
    for parts in (each for each in range(1, group + 1) if group % each == 0):
        few = _few_tile(group // parts, operands, capability)
        many = _many_tile(few.rows, operands, capability) if few else None
        if few and many and few.rows <= operands.most_rows:
            return parts, few, many
    return None


def _few_tile(heads: int, operands: _Operands, capability: Capability) -> _Tile | None:
    """Return the tile of single tokens: as few rows as a product takes, and many keys, so that loads run far ahead."""
    rows = _power(heads)
    num_warps = operands.least_warps if rows <= _FEW_ROWS else 8
    sizes: tuple[tuple[int, int], ...] = ((64, 3), (64, 2), (32, 2), (16, 2))
    if operands.compute == "fp32":
        sizes = sizes[-1:] if operands.has_large_heads else sizes[-2:]
    tiles = [_Tile(rows, keys, num_warps, num_stages) for keys, num_stages in sizes]
    return _first_that_fits(tiles, operands, capability)


def _many_tile(least_rows: int, operands: _Operands, capability: Capability) -> _Tile | None:
    """Return the tile of prompts: the largest that fits, into registers too."""
    sizes: tuple[tuple[int, int, int], ...] = (
        *((128, 64, 8), (64, 64, 8), (64, 32, 4)),
        *((32, 32, 4), (32, 16, 4), (16, 16, 4)),
    )
    if operands.compute == "fp32":
        # Float32 is multiplied in three parts, whose registers large tiles do not leave.
        sizes = sizes[-1:] if operands.has_large_heads else ((32, 32, 8), *sizes[-2:])
    elif operands.has_large_heads and not _has_groups(capability):
        # The sums of 128 rows of such heads do not fit into the registers of eight warps.
        sizes = sizes[1:]
    sizes = tuple(size for size in sizes if size[0] <= operands.most_rows)
    tiles = [
        _Tile(max(rows, least_rows), keys, max(num_warps, operands.least_warps), 2) for rows, keys, num_warps in sizes
    ]
    return _first_that_fits(tiles, operands, capability)


def _has_groups(capability: Capability) -> bool:
    """Return whether groups of warps multiply what is in shared memory (wgmma, tcgen05)."""
    return capability[0] in {9, 10}


def _first_that_fits(tiles: list[_Tile], operands: _Operands, capability: Capability) -> _Tile | None:
    limit = shared_limit(capability)
    return next((tile for tile in tiles if operands.shared_bytes(tile, capability) <= limit), None)


def _attend_types(compute: str, cache: str) -> dict[str, str]:
    return {
        **dict.fromkeys(("out", "queries"), f"*{compute}"),
        **dict.fromkeys(("partial_out", "partial_stats", "sinks", "slopes"), _FLOATS),
        **dict.fromkeys(("key_cache", "value_cache"), f"*{cache}"),
        **dict.fromkeys(("tables", "items"), _INTS),
        **dict.fromkeys(("scale", "softcap", "key_factor", "value_factor"), "fp32"),
        "window": "i32",
    }


def _power(number: int, least: int = _LEAST) -> int:
    """Return the least power of two that is not less."""
    return max(least, 1 << (number - 1).bit_length())
