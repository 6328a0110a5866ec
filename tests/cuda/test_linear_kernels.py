"""Products with matrices: the kernels' source against float64 and their twins, and how products are divided."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.cuda.calls import narrow, widen
from tests.cuda.launches import ROUNDING, Recorder, at, poison
from trident_backend.engine.gpu.program import Argument, Launch
from trident_compiler.cuda.builder import NOTHING
from trident_compiler.cuda.linear_kernels import linear_launches
from trident_compiler.cuda.linear_tiles import DTYPES, Matrix, divisions
from trident_compiler.cuda.targets import TARGETS, Capability
from trident_compiler.weights import quantization
from trident_compiler.weights.weights import Weight

Array = npt.NDArray[Any]
#: Of sums in float32, as a part of the sum of the products' sizes.
SUMMING = 1e-5
_QUANTIZE: dict[str, Callable[[Array, quantization.RoundScales], tuple[Array, Array]]] = {
    "int8": quantization.int8_per_channel,
    "int4": quantization.int4_symmetric,
    "fp8": quantization.e4m3_per_channel,
}


@dataclass(frozen=True)
class Case:
    """A product: a format of weights, a type of activations, rows, inputs and outputs of each head."""

    weights: str
    compute: str
    num_rows: int
    in_size: int
    out_size: int
    num_heads: int = 1
    bias: bool = False
    residual: bool = False
    out_dtype: str = ""
    capability: Capability = (9, 0)


CASES = (
    # Every format, with shapes that no tile divides.
    Case("bf16", "bf16", 5, 77, 35, bias=True),
    Case("fp16", "fp16", 21, 130, 67, residual=True, capability=(8, 0)),
    Case("fp32", "fp32", 19, 51, 41, bias=True, residual=True),
    Case("int8", "bf16", 3, 45, 131, bias=True, residual=True),
    Case("int8", "fp16", 70, 91, 33, residual=True),
    Case("int8", "fp32", 40, 33, 70, bias=True),
    Case("fp8", "bf16", 18, 75, 65, residual=True),
    Case("fp8", "fp16", 2, 200, 17, bias=True, capability=(12, 0)),
    Case("int4", "bf16", 7, 96, 33, residual=True),
    Case("int4", "bf16", 66, 192, 70, bias=True),
    Case("int4", "fp16", 17, 384, 129, bias=True, residual=True, capability=(8, 6)),
    Case("int4", "fp32", 5, 128, 40),
    # One row, one input, one output.
    Case("bf16", "bf16", 1, 1, 1),
    # Logits, in float32.
    Case("bf16", "bf16", 4, 64, 515, out_dtype="fp32"),
    # Tiles that fit.
    Case("fp16", "fp16", 16, 256, 128),
    # Heads, each with a matrix of its own.
    Case("bf16", "bf16", 9, 40, 24, num_heads=3),
    Case("int8", "bf16", 33, 40, 66, num_heads=2, bias=True),
    Case("int4", "bf16", 4, 128, 48, num_heads=2),
    # Inputs in parts.
    Case("bf16", "bf16", 3, 1100, 70, bias=True, residual=True),
    Case("fp32", "fp32", 17, 300, 65, bias=True),
    Case("int8", "fp16", 16, 2048, 33, residual=True, out_dtype="fp32"),
    Case("int4", "bf16", 5, 1408, 90, bias=True, residual=True),
    Case("fp8", "bf16", 60, 530, 40, num_heads=2, residual=True),
    # Tiles of many rows, some of them in parts, and bands of them.
    Case("bf16", "bf16", 130, 600, 100, residual=True),
    Case("int4", "bf16", 140, 256, 5, bias=True),
    Case("fp16", "fp16", 515, 40, 72),
    Case("fp32", "fp32", 700, 33, 66),
)


def _weight(case: Case, rng: np.random.Generator) -> tuple[Weight, Array]:
    """A weight as the compiler makes it, and its numbers in float64, `[heads, outputs, inputs]`."""
    floats = rng.standard_normal((case.num_heads, case.out_size, case.in_size)).astype(np.float32)
    if case.weights in ("bf16", "fp16", "fp32"):
        stored = narrow(floats, case.weights)
        return Weight("w", case.weights, stored.shape, stored), widen(stored, case.weights).astype(np.float64)
    quantize = _QUANTIZE[case.weights]
    members = [quantize(each, quantization.as_they_are) for each in floats]
    stored, scales = (np.stack([member[part] for member in members]) for part in range(2))
    weight = Weight("w", case.weights, floats.shape, stored, scales)
    numbers: Array = widen(stored, "fp8e4nv") if case.weights == "fp8" else stored
    if case.weights == "int4":
        halves = np.stack([stored & 15, stored >> 4], axis=-1).reshape(floats.shape).astype(np.int64)
        numbers = np.where(halves < 8, halves, halves - 16)
    groups = numbers.astype(np.float64).reshape(*floats.shape[:2], scales.shape[-1], -1)
    exact = (groups * scales[..., None]).reshape(floats.shape)
    assert np.abs(exact - floats).max() < 0.5, "these are the weights"
    return weight, exact


def _run(case: Case, *, in_place: bool = False) -> tuple[Array, Array, Array, list[str]]:
    """Run a product; its result, the exact one, how far they may be apart, and the functions that ran."""
    rng = np.random.default_rng(case.num_rows + case.in_size)
    out_dtype = case.out_dtype or case.compute
    weight, exact = _weight(case, rng)
    width = case.num_heads * case.out_size
    x = rng.standard_normal((case.num_rows, case.num_heads, case.in_size)).astype(np.float32)
    # A row of junk is nothing to the others.
    if case.num_rows > 2:
        x[1], x[2] = np.nan, np.inf
    bias = rng.standard_normal(width).astype(np.float32)
    arrays = {
        "x": narrow(x, case.compute),
        "weight": weight.values.view(np.int8) if case.weights == "int4" else weight.values,
        "scales": np.zeros(0, np.float32) if weight.scales is None else weight.scales,
        "bias": bias,
        "residual": narrow(rng.standard_normal((case.num_rows, width)), case.compute),
        "out": poison((case.num_rows, width), out_dtype),
    }
    residual = widen(arrays["residual"], case.compute).astype(np.float64)
    make = Recorder(**arrays)
    single = replace(weight, shape=weight.shape[1:]) if case.num_heads == 1 else weight
    names = dict(zip(arrays, at(*arrays), strict=True))
    follows: dict[str, Argument] = {
        "scales": NOTHING if weight.scales is None else names["scales"],
        "bias": names["bias"] if case.bias else NOTHING,
        "residual": names["residual"] if case.residual else NOTHING,
    }
    linear_launches(
        make,
        Matrix.of(single),
        names["x"],
        names["weight"],
        names["residual" if in_place else "out"],
        compute=case.compute,
        out_dtype=out_dtype,
        capability=case.capability,
        max_rows=1024,
        **follows,
    )
    ran = make.run(case.num_rows, SUMMING)
    with np.errstate(invalid="ignore"):
        wide = widen(arrays["x"], case.compute).astype(np.float64)
        want = np.einsum("thk,hnk->thn", wide, exact).reshape(case.num_rows, width)
        sizes = np.einsum("thk,hnk->thn", np.abs(wide), np.abs(exact)).reshape(case.num_rows, width)
        want += case.bias * bias.astype(np.float64) + (residual if case.residual else 0)
    allowed = SUMMING * (sizes + 1) + 1.01 * ROUNDING[out_dtype] * np.abs(want)
    out = widen(arrays["residual" if in_place else "out"], out_dtype)
    return out, want, allowed, [spec.function for spec in ran]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.weights}-{case.compute}-{case.num_rows}")
def test_linear_kernels_compute_products_in_every_format(case: Case) -> None:
    out, want, allowed, functions = _run(case)
    junk = np.zeros(case.num_rows, bool)
    junk[1:3] = case.num_rows > 2
    assert np.isfinite(out[~junk]).all()
    assert not np.isfinite(out[junk]).any()
    assert (np.abs(out - want) <= allowed)[~junk].all(), np.nanmax(np.abs(out - want) / allowed)
    assert functions in (["linear.linear"], ["linear.linear", "linear.add_parts"])


def test_linear_kernels_cases_divide_inputs_and_do_not() -> None:
    parts = {len(_run(case)[3]) for case in (CASES[0], CASES[18])}
    assert parts == {1, 2}


@pytest.mark.parametrize("case", [CASES[1], CASES[18]])
def test_linear_kernels_add_to_the_residual_in_its_place(case: Case) -> None:
    out, want, allowed, _ = _run(case, in_place=True)
    rows = [0, *range(3, case.num_rows)]
    assert (np.abs(out - want) <= allowed)[rows].all()


def test_linear_kernels_parts_are_one_kernel_whatever_follows() -> None:
    x, weight, out, bias = at("x", "weight", "out", "bias")
    kernels = []
    for follows in (NOTHING, bias):
        make = Recorder()
        matrix, target = Matrix(2048, 64), (9, 0)
        linear_launches(
            make, matrix, x, weight, out, compute="bf16", out_dtype="bf16", capability=target, max_rows=9, bias=follows
        )
        kernels.append([step.spec for step in make.steps])
    (product, added), (biased_product, biased_added) = kernels
    assert product == biased_product
    assert added != biased_added


MATRICES = st.builds(
    Matrix,
    in_size=st.integers(1, 300).map(lambda number: number * 32) | st.integers(1, 20_000),
    out_size=st.integers(1, 300_000),
    num_heads=st.sampled_from([1, 1, 2, 16]),
    dtype=st.sampled_from(sorted(set(DTYPES.values()))),
).map(
    lambda matrix: (
        replace(matrix, group=quantization.group_size(matrix.in_size) or 0) if matrix.dtype == "i8" else matrix
    )
)


@given(MATRICES, st.sampled_from(["bf16", "fp32"]), st.sampled_from(sorted(TARGETS)), st.integers(1, 20_000))
def test_linear_kernels_every_number_of_rows_is_divided_in_one_way(
    matrix: Matrix, compute: str, capability: Capability, max_rows: int
) -> None:
    found = divisions(matrix, compute, capability, max_rows)
    assert found[0].least == 1
    assert found[-1].most == 0
    assert found[-1].least <= max_rows
    assert all(before.most + 1 == after.least for before, after in pairwise(found))
    for each in found:
        turns = -(-matrix.in_size // each.tile.depth)
        assert 1 <= each.parts <= turns
        assert (each.parts - 1) * -(-turns // each.parts) < turns, "a part has nothing to do"
        assert not matrix.group or matrix.group % each.tile.depth == 0, "numbers of a turn share scales"
        assert each.parts == 1 or (each.most or max_rows) <= 512, "the parts of many rows are much memory"


@pytest.mark.parametrize("max_rows", [8, 40, 100, 300])
def test_linear_kernels_steps_of_few_rows_are_divided_as_in_an_engine_of_many(max_rows: int) -> None:
    matrix = Matrix(2048, 2048)
    few, many = (divisions(matrix, "bf16", (9, 0), rows) for rows in (max_rows, 8192))
    assert [(each.least, each.tile, each.parts) for each in few] == [
        (each.least, each.tile, each.parts) for each in many[: len(few)]
    ]


@pytest.mark.parametrize("num_rows", [1, 16, 17, 64, 65, 100, 128, 200, 256, 300, 512, 600, 1100, 4096])
@pytest.mark.parametrize("in_size", [2048, 8192])
def test_linear_kernels_few_outputs_fill_a_large_gpu(num_rows: int, in_size: int) -> None:
    matrix = Matrix(in_size, 2048)
    (found,) = (
        each
        for each in divisions(matrix, "bf16", (9, 0), 8192)
        if Launch("", (), {}, each.least, each.most).takes(num_rows)  # type: ignore[arg-type]
    )
    programs = -(-num_rows // found.tile.rows) * -(-matrix.out_size // found.tile.columns) * found.parts
    assert programs >= 0.75 * TARGETS[9, 0].num_multiprocessors


def test_linear_kernels_divide_inputs_only_where_programs_are_fewer_than_multiprocessors() -> None:
    for out_size, parts in ((8512, 1), (8448, 1), (4224, 2), (2112, 4)):
        first = divisions(Matrix(4096, out_size), "bf16", (9, 0), 8192)[0]
        assert (first.most, first.parts) == (16, parts)


@pytest.mark.parametrize(
    ("matrix", "columns"),
    [
        (Matrix(4096, 132 * 128), 128),
        (Matrix(4096, 131 * 128), 64),
        (Matrix(4096, 132 * 128, dtype="i8"), 128),
        (Matrix(4096, 132 * 128, dtype="i8", group=128), 64),
    ],
)
def test_linear_kernels_up_to_64_rows_have_wide_tiles_where_these_fill_the_gpu(matrix: Matrix, columns: int) -> None:
    (found,) = (each for each in divisions(matrix, "bf16", (9, 0), 8192) if each.least <= 17 <= (each.most or 17))
    assert (found.most, found.tile.rows, found.tile.columns, found.parts) == (64, 64, columns, 1)


def test_linear_kernels_weights_of_four_bits_have_symmetric_groups() -> None:
    values, scales, zero_points = quantization.int4_groups(np.ones((2, 64), np.float32))
    with pytest.raises(AssertionError, match="symmetric"):
        Matrix.of(Weight("w", "int4", (2, 64), values, scales, zero_points))
