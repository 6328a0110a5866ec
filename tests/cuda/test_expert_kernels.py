"""Mixtures of experts: each kernel's source against its twin and numpy, and whole mixtures against float64."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from tests.cuda import twins
from tests.cuda.calls import Call, narrow, storage, widen
from tests.cuda.interpreting import interpret
from trident_backend.engine.gpu.program import Argument, Count, Kind, Launch
from trident_compiler.checkpoint.tensor_files import StoredTensor
from trident_compiler.cuda.builder import Grid, value
from trident_compiler.cuda.expert_kernels import _tiles_of, expert_launches
from trident_compiler.cuda.experts import CudaExperts
from trident_compiler.cuda.kernel_spec import KernelSpec
from trident_compiler.cuda.linear_tiles import Matrix
from trident_compiler.cuda.operations import Target
from trident_compiler.cuda.pointwise_kernels import gated_launch
from trident_compiler.cuda.stored_weights import StoredWeights
from trident_compiler.cuda.tensors import Tensor
from trident_compiler.families.words import Activation, Experts, Routing, Scoring
from trident_compiler.weights import formats
from trident_compiler.weights.roles import Role
from trident_compiler.weights.weights import Weight, WeightSource

Array = npt.NDArray[Any]
HIDDEN, INNER = 128, 72
ROUTINGS = {
    "softmax": Routing(6, 2),
    "softmax of the chosen": Routing(5, 3, Scoring.SOFTMAX_OF_CHOSEN, normalised=False),
    "softmax that stays": Routing(8, 4, normalised=False, factor=2.5),
    "one": Routing(3, 1, Scoring.SIGMOID, normalised=False),
    "groups": Routing(12, 3, Scoring.SIGMOID, True, 1.5, None, 4, 2, 2, 1e-20),
    "odd groups": Routing(15, 4, Scoring.SOFTMAX, False, 1.0, None, 3, 2, 1),
    "all": Routing(4, 4, Scoring.SIGMOID),
}


@dataclass
class Recorded:
    """A program of launches, and arrays on which they run."""

    interprets: bool = False
    counted: Count = Count.TOKENS
    values: dict[str, tuple[int, str, Count]] = field(default_factory=dict)
    arrays: dict[str, Array] = field(default_factory=dict)
    launches: list[tuple[KernelSpec, Launch]] = field(default_factory=list)

    def value(self, width: int, dtype: str, count: Count) -> str:
        self.values[f"v{len(self.values)}"] = width, dtype, count
        return f"v{len(self.values) - 1}"

    def weight(self, name: str, array: Callable[[], Array] | Array, dtype: str) -> str:
        if name not in self.arrays:
            made = array() if callable(array) else array
            self.arrays[name] = np.ascontiguousarray(made).view(storage(dtype))
        return name

    def launch(
        self, spec: KernelSpec, grid: Grid, arguments: Mapping[str, Argument], least: int = 0, most: int = 0
    ) -> None:
        assert set(arguments) == set(dict(spec.types))
        self.launches.append((spec, Launch("", grid, arguments, least, most)))

    def run(self, num_rows: int) -> None:
        """Run what a step of so many rows has; what nobody writes is junk."""
        for name, (width, dtype, count) in self.values.items():
            shape = (num_rows if count is self.counted else 1, width)
            if name not in self.arrays or self.arrays[name].shape != shape:
                junk = np.full(shape, np.nan) if dtype != "i32" else np.full(shape, 2**30)
                self.arrays[name] = narrow(junk, dtype)
        for spec, launch in self.launches:
            if launch.takes(num_rows):
                grid = tuple(extent.of({self.counted: num_rows}) for extent in launch.grid)
                self._run(spec, grid, {key: self._bound(each, num_rows) for key, each in launch.arguments.items()})

    def _run(self, spec: KernelSpec, grid: Any, arguments: dict[str, Any]) -> None:
        types, constants = dict(spec.types), dict(spec.constants)
        if self.interprets and spec.function.startswith("experts."):
            interpret(spec.function, grid, types, constants, arguments, backwards=True)
        else:
            twins.run(spec.function, Call.on_arrays(grid, types, constants, arguments))

    def _bound(self, argument: Argument, num_rows: int) -> Array | int | float:
        if argument.kind in (Kind.VALUE, Kind.WEIGHT):
            return self.arrays[argument.name]
        return {Kind.NUMBER: argument.number, Kind.COUNT: num_rows, Kind.NOTHING: 0}[argument.kind]


def _stack(rng: np.random.Generator, label: str, shape: tuple[int, int, int], wanted: str, plain: str) -> Weight:
    """A stack of matrices in a format, as a checkpoint gives it."""
    count, out_size, in_size = shape
    names = [f"{label} {number}" for number in range(count)]
    tensors = {}
    for name in names:
        values = rng.normal(0, 0.2, (out_size, in_size)).astype(np.float32)
        tensors[name] = StoredTensor(name, "F32", values, mmap.mmap(-1, values.nbytes), 0)
    source = WeightSource(tensors, wanted, plain, tied=False, uniform=True)
    return source.stack(names, out_size, in_size, Role.COLUMN)


def _exact(weight: Weight) -> Array:
    """The numbers that a stack stands for, float64."""
    kind = {formats.INT8: "i8", formats.FP8: "fp8e4nv"}.get(weight.format, weight.format)
    if weight.format == formats.INT4:
        pairs = weight.values.view(np.int8)
        numbers = np.stack([(pairs << 4) >> 4, pairs >> 4], axis=-1).reshape(weight.shape).astype(np.float64)
    else:
        numbers = widen(weight.values, kind).astype(np.float64).reshape(weight.shape)
    if weight.scales is None:
        return np.asarray(numbers, np.float64)
    groups = weight.scales.shape[-1]
    scaled = numbers.reshape(*weight.shape[:-1], groups, -1) * weight.scales[..., None]
    return np.asarray(scaled.reshape(weight.shape), np.float64)


def _vectors(rng: np.random.Generator, *shape: int) -> Weight:
    values = rng.normal(0, 0.3, shape).astype(np.float32)
    return Weight(f"bias {shape} {values.flat[0]}", formats.FP32, shape, values)


def chosen_shares(logits: Array, routing: Routing) -> Array:
    """The weights of all experts for each token, `[T, experts]`, one token after another, as a reader would say it."""
    shares = np.zeros(logits.shape)
    for row, each in zip(shares, logits.astype(np.float64), strict=True):
        softmax = np.exp(each - each.max()) / np.exp(each - each.max()).sum()
        scores = {
            Scoring.SOFTMAX: softmax,
            Scoring.SIGMOID: 1 / (1 + np.exp(-each)),
            Scoring.SOFTMAX_OF_CHOSEN: each,
        }[routing.scoring]
        choice = scores + (0 if routing.choice_bias is None else routing.choice_bias.values)
        size = routing.num_experts // routing.num_groups
        groups = [choice[begin : begin + size] for begin in range(0, routing.num_experts, size)]
        totals = [sum(sorted(group, reverse=True)[: routing.group_top]) for group in groups]
        best = sorted(range(routing.num_groups), key=lambda number: -totals[number])[: routing.num_chosen_groups]
        if routing.num_chosen_groups == routing.num_groups:
            best = list(range(routing.num_groups))
        open_ids = [expert for expert in range(routing.num_experts) if expert // size in best]
        ids = sorted(open_ids, key=lambda expert: -choice[expert])[: routing.num_chosen]
        values = scores[ids]
        if routing.scoring is Scoring.SOFTMAX_OF_CHOSEN:
            values = np.exp(values - values.max()) / np.exp(values - values.max()).sum()
        if routing.normalised:
            values = values / (values.sum() + routing.sum_epsilon)
        row[ids] = values * routing.factor
    return shares


@dataclass
class Mixture:
    """A mixture with its weights, as launches and in float64."""

    routing: Routing
    experts: Experts
    recorded: Recorded
    x: Tensor
    logits: Tensor
    out: Tensor
    compute: str

    def run(self, x: Array, logits: Array) -> Array:
        for tensor, numbers in ((self.x, x), (self.logits, logits)):
            self.recorded.arrays[tensor.at.name] = narrow(numbers, tensor.dtype)
        self.recorded.run(len(x))
        return widen(self.recorded.arrays[self.out.at.name], self.compute)

    def expected(self, x: Array, logits: Array) -> Array:
        x, logits = (widen(narrow(each, self.compute), self.compute).astype(np.float64) for each in (x, logits))
        shares = chosen_shares(logits, self.routing)
        total = np.zeros(x.shape)
        for expert in range(self.routing.num_experts):
            gate, up = (
                x @ _exact(weight)[expert].T + (0 if bias is None else bias.values[expert])
                for weight, bias in (
                    (self.experts.gate, self.experts.gate_bias),
                    (self.experts.up, self.experts.up_bias),
                )
            )
            inner = gate / (1 + np.exp(-gate)) * up
            bias = 0 if self.experts.down_bias is None else self.experts.down_bias.values[expert]
            total += shares[:, expert, None] * (inner @ _exact(self.experts.down)[expert].T + bias)
        return total


def _mixture(
    routing: Routing,
    *,
    compute: str = "fp32",
    wanted: str = formats.FP32,
    has_bias: bool = False,
    interprets: bool = False,
    inner: int = INNER,
    seed: int = 0,
) -> Mixture:
    rng = np.random.default_rng(seed)
    count = routing.num_experts
    shapes = {"gate": (inner, HIDDEN), "up": (inner, HIDDEN), "down": (HIDDEN, inner)}
    gate, up, down = (_stack(rng, label, (count, *shape), wanted, compute) for label, shape in shapes.items())
    biases = [_vectors(rng, count, out_size) for out_size, _ in shapes.values()] if has_bias else [None] * 3
    experts = Experts(gate, up, down, *biases)
    recorded = Recorded(interprets)

    def tensor(width: int) -> Tensor:
        return Tensor(value(recorded.value(width, compute, Count.TOKENS)), width, compute, Count.TOKENS)

    def gating(gate: Tensor, up: Tensor) -> Tensor:
        out = tensor(gate.width)
        gated_launch(recorded, Activation.SILU, gate.at, up.at, out.at, width=gate.width, dtype=compute)
        return out

    x, logits = tensor(HIDDEN), tensor(count)
    target = Target(compute, (9, 0), 4096)
    out = CudaExperts(recorded, target, StoredWeights(recorded)).mix(x, logits, routing, experts, gating)
    return Mixture(routing, experts, recorded, x, logits, out, compute)


def _tokens(routing: Routing, num_rows: int, seed: int = 0) -> tuple[Array, Array]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(num_rows, HIDDEN)), rng.normal(size=(num_rows, routing.num_experts))


def _error(found: Array, expected: Array) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def _with_bias(routing: Routing, seed: int = 5) -> Routing:
    bias = _vectors(np.random.default_rng(seed), routing.num_experts)
    return replace(routing, choice_bias=bias)


@pytest.mark.parametrize("interprets", [False, True])
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("name", ROUTINGS)
def test_expert_kernels_route_chooses_as_a_reader_would(name: str, has_bias: bool, interprets: bool) -> None:
    routing = _with_bias(ROUTINGS[name]) if has_bias else ROUTINGS[name]
    mixture = _mixture(routing, interprets=interprets, inner=8)
    num_rows = 4 if interprets else 200
    _, logits = _tokens(routing, num_rows)
    logits = (np.round(logits * 2) / 2 if not has_bias else logits).astype(np.float32)
    # A row of no numbers, as padding may be, has experts, each once.
    logits[-1] = np.nan
    _, launch = mixture.recorded.launches[0]
    chosen, shares = (launch.arguments[key].name for key in ("chosen", "shares"))
    mixture.recorded.launches = mixture.recorded.launches[:1]
    mixture.run(np.zeros((num_rows, HIDDEN)), logits)
    found_ids, found_shares = (mixture.recorded.arrays[key] for key in (chosen, shares))
    spread = np.zeros((num_rows, routing.num_experts))
    np.put_along_axis(spread, found_ids.astype(np.int64), found_shares, axis=1)
    np.testing.assert_allclose(spread[:-1], chosen_shares(logits[:-1], routing), rtol=1e-5, atol=1e-7)
    assert all(len(set(row)) == routing.num_chosen for row in found_ids.tolist())
    assert found_ids.min() >= 0
    assert found_ids.max() < routing.num_experts


@pytest.mark.parametrize(("num_rows", "interprets"), [(1, True), (3, True), (700, True), (0, False), (2000, False)])
def test_expert_kernels_pairs_are_ordered_by_expert_and_then_as_they_come(num_rows: int, interprets: bool) -> None:
    num_experts, num_chosen = (5, 2) if interprets else (60, 4)
    rng = np.random.default_rng(num_rows)
    chosen = np.argsort(rng.random((num_rows, num_experts)), axis=1)[:, :num_chosen].astype(np.int32)
    # An expert that nobody has.
    chosen[chosen == 3] = num_experts - 1
    order, counts = np.full(num_rows * num_chosen, -7, np.int32), np.full(num_experts, -7, np.int32)
    types = {"order": "*i32", "counts": "*i32", "chosen": "*i32", "num_rows": "i32"}
    constants = {"CHOSEN": num_chosen, "BLOCK": 1024}
    given: dict[str, Array | int | float] = {"order": order, "counts": counts, "chosen": chosen, "num_rows": num_rows}
    if interprets:
        interpret("experts.group", (num_experts, 1, 1), types, constants, given, backwards=True)
    else:
        twins.run("experts.group", Call.on_arrays((num_experts, 1, 1), types, constants, given))
    np.testing.assert_array_equal(order, sorted(range(chosen.size), key=lambda pair: (chosen.flat[pair], pair)))
    np.testing.assert_array_equal(counts, [np.sum(chosen == expert) for expert in range(num_experts)])


@pytest.mark.parametrize("num_rows", [1, 2, 7, 40, 300])
@pytest.mark.parametrize("name", ROUTINGS)
def test_expert_kernels_a_mixture_is_the_weighted_sum_of_what_is_chosen(name: str, num_rows: int) -> None:
    routing = ROUTINGS[name]
    mixture = _mixture(routing, has_bias=num_rows % 2 == 0)
    x, logits = _tokens(routing, num_rows)
    assert _error(mixture.run(x, logits), mixture.expected(x, logits)) < 3e-6


KINDS = [
    ("fp32", formats.FP32, 3e-6),
    ("bf16", formats.BF16, 6e-3),
    ("fp16", formats.FP16, 8e-4),
    ("bf16", formats.INT8, 6e-3),
    ("fp16", formats.INT4, 8e-4),
    ("bf16", formats.FP8, 6e-3),
]


@pytest.mark.parametrize(("compute", "wanted", "error"), KINDS)
def test_expert_kernels_every_format_of_weights_in_source_and_twin(compute: str, wanted: str, error: float) -> None:
    """Every second kind has biases; rows and columns are no whole tiles, and a row of no numbers touches no other."""
    routing = Routing(4, 2, Scoring.SOFTMAX_OF_CHOSEN, normalised=False)
    has_bias = wanted in (formats.FP32, formats.INT8, formats.INT4)
    inner = 128 if wanted == formats.INT4 else INNER
    sizes = {"compute": compute, "wanted": wanted, "has_bias": has_bias, "inner": inner}
    by_source, by_twin = (_mixture(routing, interprets=interprets, **sizes) for interprets in (True, False))  # type: ignore[arg-type]
    assert by_source.experts.gate.format == wanted
    x, logits = _tokens(routing, 9)
    expected = by_source.expected(x, logits)
    x, logits = np.vstack([x, np.full(HIDDEN, np.nan)]), np.vstack([logits, np.full(4, np.nan)])
    found, twin = by_source.run(x, logits), by_twin.run(x, logits)
    assert _error(found[:-1], expected) < error
    assert _error(twin[:-1], expected) < error
    assert _error(found[:-1], twin[:-1]) < error / 4
    assert np.isnan(found[-1]).all()


def test_expert_kernels_large_tiles_multiply_as_small_ones() -> None:
    routing = Routing(2, 1)
    mixture = _mixture(routing, interprets=True, inner=40)
    x, logits = _tokens(routing, 100)
    # One expert's rows are more than a tile's.
    logits[:80, 0] += 10
    tiles = {dict(spec.constants).get("TILE_T") for spec, launch in mixture.recorded.launches if launch.takes(100)}
    assert 64 in tiles
    assert _error(mixture.run(x, logits), mixture.expected(x, logits)) < 3e-6


def test_expert_kernels_what_a_token_gets_depends_on_no_other() -> None:
    routing = ROUTINGS["groups"]
    mixture = _mixture(routing)
    x, logits = _tokens(routing, 90)
    whole = mixture.run(x, logits)
    assert _error(mixture.run(x[30:50], logits[30:50]), whole[30:50]) < 2e-6


def test_expert_launches_tiles_are_enough_for_any_choice() -> None:
    """The most tiles are there where as many experts as can be have one row more than whole tiles."""
    nothing = Argument(Kind.NOTHING)
    for num_experts, num_chosen in ((8, 2), (128, 8), (60, 4), (256, 8), (4, 4), (3, 1), (512, 10)):
        for compute, max_rows in (("bf16", 5000), ("fp32", 40)):
            recorded = Recorded()
            matrix = Matrix(64, 64, num_experts, "bf16")
            expert_launches(
                recorded, matrix, nothing, nothing, nothing, num_chosen=num_chosen, order=nothing, counts=nothing,
                x_is_shared=True, compute=compute, capability=(9, 0), max_rows=max_rows,
            )  # fmt: skip
            for num_rows in (*range(1, min(300, max_rows)), *range(300, max_rows, 61)):
                ((spec, launch),) = (taken for taken in recorded.launches if taken[1].takes(num_rows))
                tile = int(dict(spec.constants)["TILE_T"])
                available = launch.grid[0].of({Count.TOKENS: num_rows})
                alone = min(num_experts, num_rows * num_chosen)
                wanted = alone + (num_rows * num_chosen - alone) // tile
                assert wanted <= available <= 6 * wanted, (num_experts, num_chosen, num_rows)


def test_expert_launches_few_rows_have_as_many_tiles_as_pairs() -> None:
    assert _tiles_of(128, 8, 16, 1, 16) == (1, 8)
    assert _tiles_of(128, 8, 64, 1025, 8192) == (64, 16)
