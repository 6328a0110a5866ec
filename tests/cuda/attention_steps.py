"""Random steps of paged attention, and what they give in float64.

Owns the draw of a step: which kind of attention, which sequences and blocks, and how the work is divided, more wildly
than a planner would. Never asks a planner.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from tests.cuda import twins
from tests.cuda.calls import Call, narrow, widen
from tests.cuda.interpreting import interpret
from trident_compiler.cuda.attention_kernels import AttentionSpecs, attention_specs
from trident_compiler.cuda.kernel_spec import KernelSpec

Array = npt.NDArray[Any]
Grid: TypeAlias = tuple[int, int, int]
Types = Mapping[str, str]
Constants: TypeAlias = Mapping[str, int | float | bool]
Arguments: TypeAlias = Mapping[str, Array | int | float]
Launch = Callable[[str, Grid, Types, Constants, Arguments], None]

#: Random steps that each of two files of tests takes.
NUM_STEPS = int(os.environ.get("ATTENTION_STEPS", "92"))
#: Largest errors, relative to the largest value that a row sees.
TOLERANCES = {"fp32": 2e-6, "fp16": 8e-4, "bf16": 6e-3}
_PADDING = 3
_GROUPS = (1, 2, 3, 4, 5, 7, 8, 12, 16, 32)
_DIMS = ((64, 64), (128, 128), (80, 80), (96, 96), (256, 256), (64, 128), (192, 128), (40, 24), (112, 112), (16, 48))


@dataclass(frozen=True)
class Kind:
    """A kind of attention; `window`, `softcap` of 0 are none."""

    compute: str
    cache: str
    kv_heads: int
    group: int
    dim: int
    dim_v: int
    block: int
    window: int
    softcap: float
    sinks: bool
    alibi: bool
    keys: int
    many_rows: int
    head_parts: int = 1

    def specs(self) -> AttentionSpecs:
        """Return the kernels, as the compiler would have them."""
        return attention_specs(
            num_kv_heads=self.kv_heads,
            group=self.group,
            head_dim=self.dim,
            v_head_dim=self.dim_v,
            block_size=self.block,
            compute=self.compute,
            cache=self.cache,
            capability=(9, 0),
            has_window=self.window > 0,
            has_softcap=self.softcap > 0,
            has_sinks=self.sinks,
            has_alibi=self.alibi,
        )


def draw_kind(seed: int) -> Kind:
    """Return the kind of attention of a seed; a few hundred seeds have all features, alone and together."""
    rng, rng_parts = np.random.default_rng([seed, 1]), np.random.default_rng([seed, 3])
    compute = ("fp16", "bf16", "fp32")[seed % 3]
    group = _GROUPS[seed % len(_GROUPS)]
    dim, dim_v = _DIMS[seed // 2 % len(_DIMS)]
    plain = rng.random() < 0.2
    has = (np.zeros(4) if plain else rng.random(4) < 0.4).astype(bool)
    # As if no tile could hold the heads of a group.
    divisors = [parts for parts in range(2, group + 1) if group % parts == 0]
    head_parts = int(rng_parts.choice(divisors)) if divisors and rng_parts.random() < 0.4 else 1
    few_rows = _few_rows(group // head_parts)
    return Kind(
        compute=compute,
        cache="fp8e4nv" if seed % 5 == 0 else compute,
        kv_heads=int(rng.choice([1, 2, 3] if group < 4 else [1, 2])),
        group=group,
        dim=dim,
        dim_v=dim_v,
        block=int(rng.choice([16, 32, 64])),
        window=int(rng.integers(1, 90)) if has[0] else 0,
        softcap=float(rng.uniform(1.0, 5.0)) if has[1] else 0.0,
        sinks=bool(has[2]),
        alibi=bool(has[3]),
        keys=int(rng.choice([16, 32, 64])),
        many_rows=max(few_rows, int(rng.choice([16, 32, 64]))),
        head_parts=head_parts,
    )


def _few_rows(heads: int) -> int:
    """Return the rows of a small tile: those of one token, and as many as a product has at least."""
    return max(16, 1 << (heads - 1).bit_length())


class Step:
    """A step: sequences with histories in a pool of blocks that is NaN where nobody has written.

    Args:
        seed: of everything.
    """

    def __init__(self, seed: int) -> None:
        self.kind = kind = draw_kind(seed)
        self.rng = rng = np.random.default_rng([seed, 2])
        self.specs = kind.specs()
        self.few_rows = _few_rows(kind.group // kind.head_parts)
        tile_len = max(1, kind.many_rows // (kind.group // kind.head_parts))
        longest = min(24, 2 * tile_len) + 3
        num_seqs = int(rng.integers(2, 5))
        lens = [int(rng.choice([1, 1, rng.integers(2, 5), rng.integers(1, longest)])) for _ in range(num_seqs)]
        self.past = [int(rng.integers(1, 120)) if rng.random() < 0.7 else 0 for _ in lens]
        self.begins = np.concatenate([[0], np.cumsum(lens)])
        self.tokens = int(self.begins[-1])
        heads, padded = kind.kv_heads * kind.group, self.tokens + _PADDING
        self.queries = self._numbers(padded, heads, kind.dim)
        self.keys = self._numbers(padded, kind.kv_heads, kind.dim)
        self.values = self._numbers(padded, kind.kv_heads, kind.dim_v)
        self.factors = (0.013, 0.021) if kind.cache != kind.compute else (1.0, 1.0)
        self.scale = float(2 * kind.dim**-0.5)
        self.sinks = (2 * rng.standard_normal(heads)).astype(np.float32)
        self.slopes = (0.5 * 2.0 ** -np.arange(heads)).astype(np.float32)
        self._make_pool(lens)

    def _numbers(self, *shape: int) -> Array:
        return narrow(self.rng.standard_normal(shape).astype(np.float32), self.kind.compute)

    def cached(self, numbers: Array, factor: float) -> Array:
        """Return keys or values as they lie in the cache."""
        if self.kind.cache == self.kind.compute:
            return numbers
        return narrow(widen(numbers, self.kind.compute) / np.float32(factor), self.kind.cache)

    def _make_pool(self, lens: list[int]) -> None:
        kind, rng = self.kind, self.rng
        needed = [-(-(past + n) // kind.block) for past, n in zip(self.past, lens, strict=True)]
        num_blocks = sum(needed) + 3
        free = rng.permutation(num_blocks)
        nan = narrow(np.full((), np.nan, np.float32), kind.cache)
        self.key_cache = np.full((num_blocks, kind.kv_heads, kind.block, kind.dim), nan)
        self.value_cache = np.full((num_blocks, kind.kv_heads, kind.block, kind.dim_v), nan)
        self.tables = np.full(sum(needed) + len(lens), 2**30, np.int32)
        self.table_begins, self.histories = [], []
        self.places = np.full(self.tokens + _PADDING, -1, np.int32)
        used = 0
        for i, (past, n) in enumerate(zip(self.past, lens, strict=True)):
            mine = free[used : used + needed[i]]
            self.table_begins.append(used + i)
            self.tables[used + i : used + i + needed[i]] = mine
            used += needed[i]
            at = np.arange(past + n)
            block, offset = mine[at // kind.block], at % kind.block
            self.places[self.begins[i] : self.begins[i + 1]] = (block * kind.block + offset)[past:]
            keys, values = self._numbers(past, kind.kv_heads, kind.dim), self._numbers(past, kind.kv_heads, kind.dim_v)
            self.key_cache[block[:past], :, offset[:past]] = self.cached(keys, self.factors[0])
            self.value_cache[block[:past], :, offset[:past]] = self.cached(values, self.factors[1])
            self.histories.append((keys, values))

    def written_caches(self) -> tuple[Array, Array]:
        """Return the caches as they are with the step's keys and values in their places."""
        kept = np.flatnonzero(self.places >= 0)
        block, offset = self.places[kept] // self.kind.block, self.places[kept] % self.kind.block
        keys, values = self.key_cache.copy(), self.value_cache.copy()
        keys[block, :, offset] = self.cached(self.keys[kept], self.factors[0])
        values[block, :, offset] = self.cached(self.values[kept], self.factors[1])
        return keys, values

    # How the work is divided.
    def divide(self) -> tuple[dict[str, Array], dict[str, Array], dict[str, int]]:
        """Return items, merges and counts of partial results of small tiles (`few`) and of large ones (`many`)."""
        rng, kind = self.rng, self.kind
        items: dict[str, list[list[int]]] = {"few": [], "many": []}
        merges: dict[str, list[list[int]]] = {"few": [], "many": []}
        partials = {"few": 0, "many": 0}
        rows = {"few": self.few_rows, "many": kind.many_rows}
        share = kind.group // kind.head_parts
        for i, past in enumerate(self.past):
            n = int(self.begins[i + 1] - self.begins[i])
            fits = n * share <= rows["few"]
            size = "few" if fits and rng.random() < 0.9 else "many"
            tile_len = rows[size] // share
            for first in range(0, n, tile_len):
                count = min(tile_len, n - first)
                position, token = past + first, int(self.begins[i]) + first
                end = position + count
                begin = max(0, position - kind.window + 1) if kind.window else 0
                begin = max(0, begin - int(rng.integers(0, 40))) if rng.random() < 0.5 else begin
                num_pieces = int(rng.choice([1, 1, 2, 3, 4]))
                cuts = np.sort(rng.integers(begin, end + 1, num_pieces - 1)).tolist()
                bounds = [begin, *cuts, end]
                divided = partials[size] if num_pieces > 1 else -1
                if num_pieces > 1:
                    merges[size].append([token, count, partials[size], num_pieces])
                    partials[size] += num_pieces
                for piece in range(num_pieces):
                    partial = divided + piece if num_pieces > 1 else -1
                    span = bounds[piece : piece + 2]
                    items[size].append([self.table_begins[i], token, count, position, *span, partial, int(piece == 0)])
        return (
            {size: self._shuffled(found, 8, 2) for size, found in items.items()},
            {size: self._shuffled(found, 4, 1) for size, found in merges.items()},
            partials,
        )

    def _shuffled(self, rows: list[list[int]], width: int, count: int) -> Array:
        """Return rows in any order, among them some without tokens, of which nothing else is read."""
        empty = np.full((2, width), -(2**30), np.int32)
        empty[:, count] = 0
        found = np.concatenate([np.array(rows, np.int32).reshape(-1, width), empty])
        return np.ascontiguousarray(self.rng.permutation(found))

    # What runs.
    def write(self, launch: Launch) -> None:
        """Write the step's keys and values to the cache."""
        arguments = {
            "keys": self.keys,
            "values": self.values,
            "key_cache": self.key_cache,
            "value_cache": self.value_cache,
            "places": self.places,
            "key_factor": self.factors[0],
            "value_factor": self.factors[1],
        }
        _launch(launch, self.specs.write, (len(self.places), 1, 1), arguments)

    def attend(self, launch: Launch) -> Attended:
        """Return what all tokens attend to, in work divided at random; call it once."""
        kind = self.kind
        heads = kind.kv_heads * kind.group
        out = narrow(np.full((len(self.places), heads, kind.dim_v), np.nan, np.float32), kind.compute)
        items, merges, num_partials = self.divide()
        given = {
            "queries": self.queries,
            "key_cache": self.key_cache,
            "value_cache": self.value_cache,
            "tables": self.tables,
            "sinks": self.sinks,
            "slopes": self.slopes,
            "scale": self.scale,
            "softcap": kind.softcap,
            "window": kind.window,
            "key_factor": self.factors[0],
            "value_factor": self.factors[1],
        }
        partials = {}
        for size, attend, merge, rows in (
            ("few", self.specs.few, self.specs.merge_few, self.few_rows),
            ("many", self.specs.many, self.specs.merge_many, kind.many_rows),
        ):
            shape = (num_partials[size] + 1, kind.kv_heads * kind.head_parts, rows)
            sums = np.full((*shape, kind.dim_v), np.nan, np.float32)
            stats = np.full((*shape, 2), np.nan, np.float32)
            partials[size] = (sums, stats)
            written = {"out": out, "partial_out": sums, "partial_stats": stats}
            constants = {"ROWS": rows, "KEYS": kind.keys, "PARTS": kind.head_parts}
            grid = (len(items[size]), kind.kv_heads * kind.head_parts, 1)
            _launch(launch, attend, grid, {**given, **written, "items": items[size]}, constants)
            grid = (len(merges[size]), kind.kv_heads * kind.head_parts, 1)
            merged = {"ROWS": rows, "PARTS": kind.head_parts}
            _launch(launch, merge, grid, {**written, "merges": merges[size]}, merged)
        return Attended(out, partials, sum(len(found) - 2 for found in merges.values()))

    # What must come out.
    def expected(self) -> tuple[Array, Array]:
        """Return attention over what has been written, in float64, and the largest value of each row."""
        kind = self.kind
        results, largest = [], []
        for i, (old_keys, old_values) in enumerate(self.histories):
            mine = slice(int(self.begins[i]), int(self.begins[i + 1]))
            keys = self._read(old_keys, self.keys[mine], self.factors[0])
            values = self._read(old_values, self.values[mine], self.factors[1])
            query = widen(self.queries[mine], kind.compute).astype(np.float64)
            at = self.past[i] + np.arange(len(query))[:, None]
            seen_at = np.arange(len(keys))
            score = np.einsum("qhd,khd->hqk", query, np.repeat(keys, kind.group, axis=1)) * self.scale
            if kind.softcap:
                score = kind.softcap * np.tanh(score / kind.softcap)
            if kind.alibi:
                score = score + self.slopes[:, None, None].astype(np.float64) * (seen_at - at)
            is_seen = seen_at <= at
            if kind.window:
                is_seen = is_seen & (at - seen_at < kind.window)
            weight = np.exp(np.where(is_seen, score, -np.inf))
            total = weight.sum(axis=-1, keepdims=True)
            if kind.sinks:
                total = total + np.exp(self.sinks.astype(np.float64))[:, None, None]
            wide = np.repeat(values, kind.group, axis=1)
            results.append(np.einsum("hqk,khd->qhd", weight / total, wide))
            largest.append(np.full(len(query), np.abs(values).max()))
        return np.concatenate(results), np.concatenate(largest)

    def _read(self, old: Array, new: Array, factor: float) -> Array:
        numbers = self.cached(np.concatenate([old, new]), factor)
        wide = widen(numbers, self.kind.cache).astype(np.float64)
        return wide * np.float32(factor) if self.kind.cache != self.kind.compute else wide


@dataclass(frozen=True)
class Attended:
    """What a step's attention gave: results, and of small and large tiles the partial sums and their scales."""

    out: Array
    partials: dict[str, tuple[Array, Array]]
    num_merges: int


def interpreted(function: str, grid: Grid, types: Types, constants: Constants, arguments: Arguments) -> None:
    """Launch the source in the interpreter."""
    interpret(function, grid, types, constants, arguments)


def by_twin(function: str, grid: Grid, types: Types, constants: Constants, arguments: Arguments) -> None:
    """Launch the twin."""
    twins.run(function, Call.on_arrays(grid, types, constants, arguments))


def source_of(function: str) -> Any:
    """Return `module.function` as the interpreter has it."""
    module, _, name = function.partition(".")
    return getattr(importlib.import_module(f"trident_compiler.cuda.kernels.{module}"), name)


def check_step(seed: int) -> None:
    """Hold the source, and the twin, of all kernels of attention against float64 in one random step."""
    step, other = Step(seed), Step(seed)
    written = step.written_caches()
    step.write(interpreted)
    other.write(by_twin)
    caches = (step.key_cache, step.value_cache), (other.key_cache, other.value_cache)
    assert all(is_same(cache, at) for found in caches for cache, at in zip(found, written, strict=True)), (
        "keys and values are in their places, and nothing else is touched"
    )
    source, twin = step.attend(interpreted), other.attend(by_twin)
    expected, largest = step.expected()
    tolerance = TOLERANCES[step.kind.compute]
    for found in (source, twin):
        out = widen(found.out, step.kind.compute)
        assert np.isnan(out[step.tokens :]).all(), "padding is not touched"
        errors = np.abs(out[: step.tokens] - expected).max(axis=(1, 2)) / largest
        assert errors.max() <= tolerance, f"{step.kind}: {errors.max():.1e}"
    for size, (sums, stats) in source.partials.items():
        assert_same_partials(sums, stats, *twin.partials[size], tolerance * float(largest.max()))
    assert all(is_same(cache, at) for found in caches for cache, at in zip(found, written, strict=True))


def is_same(array: Array, other: Array) -> bool:
    """Return whether all bits are the same, those of NaN too."""
    return np.array_equal(array.view(np.uint8), other.view(np.uint8))


def assert_same_partials(sums: Array, stats: Array, other_sums: Array, other_stats: Array, tolerance: float) -> None:
    """Refuse partial sums that are others when they are brought to one scale, or lie in other places."""
    assert np.array_equal(np.isnan(sums), np.isnan(other_sums)), "the same partial results are written"
    assert np.array_equal(np.isnan(stats), np.isnan(other_stats))
    top, total = np.nan_to_num(stats[..., 0]), np.nan_to_num(stats[..., 1])
    other_top, other_total = np.nan_to_num(other_stats[..., 0]), np.nan_to_num(other_stats[..., 1])
    assert np.array_equal(total > 0, other_total > 0), "the same rows have seen keys"
    some = total > 0
    level = top[some] + np.log2(total[some])
    assert np.allclose(level, other_top[some] + np.log2(other_total[some]), atol=1e-4)
    mean, other_mean = sums[some] / total[some][:, None], other_sums[some] / other_total[some][:, None]
    assert np.abs(mean - other_mean).max(initial=0) <= tolerance
    assert not np.nan_to_num(sums[~some]).any()


def _launch(
    launch: Launch,
    spec: KernelSpec,
    grid: tuple[int, int, int],
    arguments: dict[str, Any],
    constants: dict[str, int] | None = None,
) -> None:
    types = dict(spec.types)
    assert set(types) == set(arguments)
    launch(spec.function, grid, types, {**dict(spec.constants), **(constants or {})}, arguments)
