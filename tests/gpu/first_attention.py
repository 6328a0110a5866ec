"""Attention on a GPU for the first time: right, the same as a graph, and how fast.

Owns the steps that are tried. Never judges: it returns lines for a page, and raises `WrongError` where numbers are
wrong.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass

import numpy as np

from tests.cuda.calls import narrow, widen
from tests.gpu.first_bench import Array, Bench
from trident_backend.engine.gpu.attention_plan import AttentionPlan, AttentionPlanner
from trident_backend.engine.gpu.kernels import KernelLibrary
from trident_backend.engine.gpu.program import AttentionKind, Program

#: Largest error of bf16, relative to the norm of all results.
TOLERANCE = 1e-2
_DTYPE = "bf16"
_PROGRAMS_EACH = 4


class WrongError(Exception):
    """A GPU computes something wrong."""


@dataclass(frozen=True)
class Lengths:
    """The sequences of a step: tokens that are in the cache already, and tokens of the step."""

    past: tuple[int, ...]
    new: tuple[int, ...]


#: Generation: sequences and their contexts. Prompts: their lengths.
DECODE = ((1, 1000), (1, 30000), (16, 1000), (64, 1000), (64, 4000), (256, 1000))
PROMPTS = (512, 2048, 8192)


def mixed(seed: int, longest_past: int = 500, lens: tuple[int, ...] = (1, 1, 3, 5, 40, 130)) -> Lengths:
    """A random step of five sequences."""
    rng = np.random.default_rng(seed)
    new = tuple(int(n) for n in rng.choice(lens, 5))
    return Lengths(tuple(int(n) for n in rng.integers(0, longest_past, 5)), new)


class Attention:
    """A step of one layer on the device.

    Args:
        bench: has its memory.
        kernels: the program's.
        kind: of the layer.
        lengths: of the sequences.
        seed: of the numbers and of the order of blocks.
        is_checked: the numbers are kept, and all random; else they are only timed.
    """

    def __init__(
        self,
        bench: Bench,
        kernels: KernelLibrary,
        kind: AttentionKind,
        block: int,
        lengths: Lengths,
        *,
        seed: int = 0,
        is_checked: bool = False,
    ) -> None:
        self._bench, self._kernels, self._kind, self._block = bench, kernels, kind, block
        self._past, self._new = np.array(lengths.past, np.int32), np.array(lengths.new, np.int32)
        self._begins = np.concatenate([[0], np.cumsum(self._new)]).astype(np.int32)
        self._num_tokens = int(self._begins[-1])
        needed = -(-(self._past + self._new) // block)
        self._table_begins = (np.cumsum(needed) - needed).astype(np.int32)
        self._tables = np.random.default_rng(seed).permutation(int(needed.sum())).astype(np.int32)
        programs = bench.device.num_multiprocessors * _PROGRAMS_EACH
        planner = AttentionPlanner(kind, programs)
        self.plan: AttentionPlan = planner.plan(self._past, self._begins, self._table_begins)
        self._arrays = self._numbers(seed) if is_checked else {}
        self._addresses = self._upload()
        self.out_bytes = self._num_tokens * kind.num_kv_heads * kind.group * kind.v_head_dim * 2

    def run(self, _: int = 0) -> None:
        """Enqueue the step."""
        kind, plan, at = self._kind, self.plan, self._addresses
        factors = {"key_factor": 1.0, "value_factor": 1.0}
        write = {name: at[name] for name in ("keys", "values", "key_cache", "value_cache", "places")}
        self._kernels.launch(kind.write, (self._num_tokens, 1, 1), {**write, **factors})
        layer = {"scale": kind.head_dim**-0.5, "softcap": 1.0, "window": 0, "sinks": 0, "slopes": 0, **factors}
        names = ("out", "queries", "key_cache", "value_cache", "tables")
        common = {**layer, **{name: at[name] for name in names}}
        for size, items, merges, attend, merge in (
            ("few", plan.few, plan.merges_few, kind.few, kind.merge_few),
            ("many", plan.many, plan.merges_many, kind.many, kind.merge_many),
        ):
            partial = {"partial_out": at[f"out_{size}"], "partial_stats": at[f"stats_{size}"]}
            if len(items):
                grid = (len(items), kind.num_programs, 1)
                self._kernels.launch(attend, grid, {**common, **partial, "items": at[size]})
            if len(merges):
                arguments = {"out": at["out"], **partial, "merges": at[f"merges_{size}"]}
                self._kernels.launch(merge, (len(merges), kind.num_programs, 1), arguments)

    def result(self) -> Array:
        """What the step has written, as it lies in memory."""
        heads = self._kind.num_kv_heads * self._kind.group
        like = np.empty((self._num_tokens, heads, self._kind.v_head_dim), np.uint16)
        return self._bench.get(self._addresses["out"], like)

    def poison(self) -> None:
        """Set what the step writes to NaN."""
        self._bench.device.fill_nan(self._addresses["out"], self.out_bytes)

    def expected(self) -> Array:
        """Attention in float64."""
        kind = self._kind
        query, key, value, key_cache, value_cache = (
            widen(self._arrays[name], _DTYPE).astype(np.float64)
            for name in ("queries", "keys", "values", "key_cache", "value_cache")
        )
        found = np.empty((self._num_tokens, kind.num_kv_heads * kind.group, kind.v_head_dim))
        for index, (past, begin, end) in enumerate(zip(self._past, self._begins[:-1], self._begins[1:], strict=True)):
            blocks = self._tables[self._table_begins[index] + np.arange(past) // self._block]
            offsets = np.arange(past) % self._block
            keys = np.concatenate([key_cache[blocks, :, offsets], key[begin:end]])
            values = np.concatenate([value_cache[blocks, :, offsets], value[begin:end]])
            hidden = np.arange(len(keys))[None, :] > past + np.arange(end - begin)[:, None]
            for head in range(found.shape[1]):
                score = query[begin:end, head] @ keys[:, head // kind.group].T * kind.head_dim**-0.5
                weight = np.exp(np.where(hidden, -np.inf, score - score.max()))
                total = weight.sum(1, keepdims=True)
                found[begin:end, head] = weight @ values[:, head // kind.group] / total
        return found

    def moved_bytes(self) -> int:
        """Bytes of keys and values that must be read."""
        per_token = self._kind.num_kv_heads * (self._kind.head_dim + self._kind.v_head_dim) * 2
        return int((self._past + self._new).sum()) * per_token

    def flops(self) -> float:
        """Operations of the products with what each token sees."""
        heads, dims = self._kind.num_kv_heads * self._kind.group, self._kind.head_dim + self._kind.v_head_dim
        seen = self._new.astype(float) * self._past + self._new * (self._new + 1.0) / 2
        return float(2 * heads * dims * seen.sum())

    def _sizes(self) -> dict[str, tuple[int, ...]]:
        kind, tokens, blocks = self._kind, self._num_tokens, len(self._tables)
        heads = kind.num_kv_heads
        return {
            "queries": (tokens, heads * kind.group, kind.head_dim),
            "keys": (tokens, heads, kind.head_dim),
            "values": (tokens, heads, kind.v_head_dim),
            "key_cache": (blocks, heads, self._block, kind.head_dim),
            "value_cache": (blocks, heads, self._block, kind.v_head_dim),
        }

    def _numbers(self, seed: int) -> dict[str, Array]:
        """Random numbers; what no token has written yet of the cache is NaN."""
        rng = np.random.default_rng([seed, 1])
        arrays = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in self._sizes().items()}
        for past, begin, end in zip(self._past, self._table_begins, [*self._table_begins[1:], None], strict=True):
            table = self._tables[begin:end]
            unwritten = np.arange(len(table) * self._block).reshape(-1, self._block) >= past
            for name in ("key_cache", "value_cache"):
                arrays[name][table] = np.where(unwritten[:, None, :, None], np.nan, arrays[name][table])
        return {name: narrow(array, _DTYPE) for name, array in arrays.items()}

    def _upload(self) -> dict[str, int]:
        bench, kind, plan = self._bench, self._kind, self.plan
        at = {
            name: bench.put(self._arrays[name]) if self._arrays else bench.random(2 * int(np.prod(shape)))
            for name, shape in self._sizes().items()
        }
        sequence = np.repeat(np.arange(len(self._new)), self._new)
        position = np.arange(self._num_tokens) - self._begins[sequence] + self._past[sequence]
        block = self._tables[self._table_begins[sequence] + position // self._block]
        arrays: Mapping[str, Array] = {
            "places": (block * self._block + position % self._block).astype(np.int32),
            "tables": self._tables,
            "few": plan.few,
            "many": plan.many,
            "merges_few": plan.merges_few,
            "merges_many": plan.merges_many,
        }
        at |= {name: bench.put(array) for name, array in arrays.items()}
        for size, rows, partials in (
            ("few", kind.few_rows, plan.num_partials_few),
            ("many", kind.many_rows, plan.num_partials_many),
        ):
            numbers = partials * kind.num_kv_heads * rows
            at[f"out_{size}"] = bench.empty(4 * numbers * kind.v_head_dim)
            at[f"stats_{size}"] = bench.empty(8 * numbers)
        at["out"] = bench.empty(self._num_tokens * kind.num_kv_heads * kind.group * kind.v_head_dim * 2)
        return at


def check(bench: Bench, kernels: KernelLibrary, program: Program, steps: list[Lengths]) -> Iterator[str]:
    """Hold every kind's steps against float64, and against their graphs; yields a line for each kind.

    Raises:
        WrongError: a number is wrong, or a graph computes other bits.
    """
    for kind in program.attention_kinds:
        block = int(kernels_block(program, kind))
        worst, num_merges = 0.0, 0
        for seed, lengths in enumerate(steps):
            with closing(Bench(bench.device)) as own:
                case = Attention(own, kernels, kind, block, lengths, seed=seed, is_checked=True)
                case.run()
                found, wanted = case.result(), case.expected()
                error = float(np.linalg.norm(widen(found, _DTYPE) - wanted) / np.linalg.norm(wanted))
                if not error < TOLERANCE:
                    raise WrongError(f"attention of {lengths}: error {error:.1e}, {TOLERANCE:.0e} are allowed")
                graph = bench.device.capture(case.run)
                case.poison()
                bench.device.launch(graph)
                again = case.result()
                bench.device.free_graph(graph)
                if not np.array_equal(found, again):
                    raise WrongError(f"attention of {lengths}: a graph computes other bits")
                worst, num_merges = (
                    max(worst, error),
                    num_merges + len(case.plan.merges_few) + len(case.plan.merges_many),
                )
        yield (
            f"attention {name_of(kind)}: {len(steps)} mixed steps right, {num_merges} divided tiles, largest error "
            f"{worst:.1e}; graphs equal bit for bit"
        )


def measure(
    bench: Bench,
    kernels: KernelLibrary,
    program: Program,
    decode: tuple[tuple[int, int], ...] = DECODE,
    prompts: tuple[int, ...] = PROMPTS,
) -> Iterator[str]:
    """Time generation and prompts; yields a line for each."""
    for kind in program.attention_kinds:
        block = int(kernels_block(program, kind))
        cases = [(f"{n} sequences of {past}", Lengths((past,) * n, (1,) * n)) for n, past in decode]
        cases += [(f"prompt of {n}", Lengths((0,), (n,))) for n in prompts]
        for name, lengths in cases:
            with closing(Bench(bench.device)) as own:
                case = Attention(own, kernels, kind, block, lengths)
                seconds = bench.seconds(case.run)
                yield (
                    f"attention {name_of(kind)}, {name}: {seconds * 1e6:.0f} us, "
                    f"{case.moved_bytes() / seconds / 1e12:.2f} TB/s of keys and values, "
                    f"{case.flops() / seconds / 1e12:.1f} TFLOP/s"
                )


def kernels_block(program: Program, kind: AttentionKind) -> int | float | bool:
    """Tokens of a block, as the kernel has it."""
    return program.kernels[kind.write].constants["BLOCK"]


def name_of(kind: AttentionKind) -> str:
    """A kind for people."""
    return f"{kind.num_kv_heads}x{kind.group} heads of {kind.head_dim}"
