"""Kernels of rows: their source against float64 and their twins."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from tests.cuda.calls import narrow, widen
from tests.cuda.launches import ROUNDING, Recorder, at, poison
from trident_compiler.cuda.builder import NOTHING
from trident_compiler.cuda.pointwise_kernels import (
    activation_launch,
    copy_columns_launch,
    gated_launch,
    numbers_launch,
    product_launch,
    sum_launch,
)
from trident_compiler.cuda.row_kernels import gather_launch, norm_launch, rotate_launch
from trident_compiler.families.words import Activation

Array = npt.NDArray[Any]
X, OUT = at("x", "out")
_TORCH: dict[Activation, Callable[[torch.Tensor], torch.Tensor]] = {
    Activation.SILU: torch.nn.functional.silu,
    Activation.GELU: torch.nn.functional.gelu,
    Activation.GELU_TANH: lambda x: torch.nn.functional.gelu(x, approximate="tanh"),
    Activation.RELU: torch.relu,
    Activation.RELU_SQUARED: lambda x: torch.relu(x) ** 2,
    Activation.SIGMOID: torch.sigmoid,
    Activation.TANH: torch.tanh,
}


def _random(shape: tuple[int, ...], seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def _assert_is(stored: Array, want: Array, dtype: str, allowed: float | Array = 1e-6) -> None:
    """Hold a result against the exact one, but for rounding to its type and a part of 1."""
    got = widen(stored, dtype).astype(np.float64)
    want = want.reshape(got.shape)
    finite = np.isfinite(want) & (np.abs(want) < 1e38)
    np.testing.assert_array_equal(np.isnan(got), np.isnan(want))
    error = np.abs(got[finite] - want[finite])
    limit = np.broadcast_to(allowed, got.shape)[finite] + (ROUNDING[dtype] * 1.02 + 3e-7) * np.abs(want[finite])
    assert (error <= limit).all(), (error / limit).max()


@pytest.mark.parametrize("is_centred", [False, True], ids=["rms", "layer"])
@pytest.mark.parametrize(
    ("shape", "dtype", "scale_heads", "bias_heads"),
    [
        ((1, 1), "fp32", None, 1),
        ((1, 61), "bf16", 1, None),
        ((1, 2880), "fp16", 1, 1),
        ((1, 5000), "fp32", None, None),
        ((5, 64), "bf16", 1, None),
        ((3, 80), "fp32", 3, 3),
        ((40, 128), "fp16", 40, 1),
    ],
)
def test_norm_kernels_norm_tokens_and_heads(
    is_centred: bool, shape: tuple[int, int], dtype: str, scale_heads: int | None, bias_heads: int | None
) -> None:
    num_rows, epsilon, (heads, dim) = 6, 1e-3, shape
    x = _random((num_rows, heads, dim)) + np.float32(50) * is_centred
    x[1], x[2], x[3] = np.nan, np.inf, x[3] * np.float32(0.01)
    x[4] = 0
    arrays = {"x": narrow(x, dtype), "out": poison((num_rows, heads, dim), dtype)}
    scale, bias = _random((scale_heads or 1, dim), 1), _random((bias_heads or 1, dim), 2)
    make = Recorder(**arrays, scale=scale, bias=bias)
    norm_launch(
        make,
        X,
        OUT,
        dim=dim,
        epsilon=epsilon,
        dtype=dtype,
        heads=heads,
        is_centred=is_centred,
        scale=at("scale")[0] if scale_heads else NOTHING,
        scale_heads=scale_heads or 1,
        bias=at("bias")[0] if bias_heads else NOTHING,
        bias_heads=bias_heads or 1,
    )
    make.run(num_rows, 1e-5)
    with np.errstate(invalid="ignore"):
        exact = widen(arrays["x"], dtype).astype(np.float64)
        if is_centred:
            exact = exact - exact.mean(axis=2, keepdims=True)
        want = exact / np.sqrt((exact**2).mean(axis=2, keepdims=True) + epsilon)
        want = want * (scale if scale_heads else 1) + (bias if bias_heads else 0)
    # A mean of 50 costs digits of float32.
    _assert_is(arrays["out"], want, dtype, 1e-4 if is_centred else 5e-6)


def _special(dtype: str) -> Array:
    sizes = [0.0, 1e-30, 1e-5, 0.1, 0.1499, 0.1501, 0.5, 1, 3, 5.5, 9, 20, 89, 1000, 6e4]
    numbers = [*sizes, *(-size for size in sizes), np.inf, np.nan, *([1e25, -1e25] if dtype != "fp16" else [])]
    x = np.concatenate([np.array(numbers, np.float32), _random((203,)) * 3])
    return narrow(x.reshape(1, -1), dtype)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("kind", list(Activation))
def test_pointwise_kernels_activations_are_those_of_torch(kind: Activation, dtype: str) -> None:
    x = _special(dtype)
    arrays = {"x": x, "out": poison(x.shape, dtype)}
    make = Recorder(**arrays)
    activation_launch(make, kind, X, OUT, width=x.shape[1], dtype=dtype)
    make.run(1, 1e-6)
    exact = torch.from_numpy(widen(x, dtype).astype(np.float64))
    want = _TORCH[kind](exact).numpy()
    # On the negative side GELU is a small difference times x, as it is in every framework.
    difference = 3e-7 if kind in (Activation.GELU, Activation.GELU_TANH) else 0.0
    sizes = np.nan_to_num(np.abs(exact.numpy()), posinf=0)
    _assert_is(arrays["out"], want, dtype, 1e-30 + difference * sizes)


@pytest.mark.parametrize(("width", "dtype"), [(1, "fp32"), (37, "bf16"), (1500, "fp16")])
def test_pointwise_kernels_sums_and_products(width: int, dtype: str) -> None:
    num_rows = 5
    a, b, column = (narrow(_random((num_rows, each), seed), dtype) for seed, each in enumerate((width, width, 1)))
    exact = [widen(each, dtype).astype(np.float64) for each in (a, b, column)]
    names = ("of two", "product", "with a column")
    results = {name: poison(a.shape, dtype) for name in names}
    make = Recorder(a=a, b=b, column=column, **results)
    first, second, one = at("a", "b", "column")
    total, product, scaled = at(*names)
    sum_launch(make, first, second, total, width=width, dtype=dtype)
    product_launch(make, first, second, product, width=width, b_width=width, dtype=dtype)
    product_launch(make, first, one, scaled, width=width, b_width=1, dtype=dtype)
    make.run(num_rows, 1e-7)
    for name, want in zip(names, (exact[0] + exact[1], exact[0] * exact[1], exact[0] * exact[2]), strict=True):
        _assert_is(results[name], want, dtype)


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize(
    ("factor", "term", "low", "high"),
    [
        (0.0883, 0.0, None, None),
        (1.0, 1.0, None, None),
        (1.0, 0.0, -7.0, 7.0),
        (1.0, 0.0, None, 0.5),
        (2, -1, 0.0, None),
    ],
)
def test_pointwise_kernels_numbers(
    dtype: str, factor: float, term: float, low: float | None, high: float | None
) -> None:
    x = narrow(np.concatenate([_random((4, 300)) * 8, np.full((1, 300), np.nan, np.float32)]), dtype)
    arrays = {"x": x, "out": poison(x.shape, dtype)}
    make = Recorder(**arrays)
    numbers_launch(make, X, OUT, width=300, dtype=dtype, factor=factor, term=term, low=low, high=high)
    make.run(5, 1e-6)
    want = widen(x, dtype).astype(np.float64) * factor + term
    _assert_is(arrays["out"], np.clip(want, -np.inf if low is None else low, np.inf if high is None else high), dtype)


@pytest.mark.parametrize("kind", [Activation.SILU, Activation.GELU_TANH])
@pytest.mark.parametrize("in_place", [False, True])
def test_pointwise_kernels_gated(kind: Activation, in_place: bool) -> None:
    num_rows, width, dtype = 3, 1100, "bf16"
    gate, up = (narrow(_random((num_rows, width), seed), dtype) for seed in (1, 2))
    exact = torch.from_numpy(widen(gate, dtype).astype(np.float64))
    out = gate if in_place else poison((num_rows, width), dtype)
    make = Recorder(gate=gate, up=up, out=out)
    first, second = at("gate", "up")
    gated_launch(make, kind, first, second, first if in_place else OUT, width=width, dtype=dtype)
    make.run(num_rows, 1e-6)
    _assert_is(out, _TORCH[kind](exact).numpy() * widen(up, dtype), dtype)


@pytest.mark.parametrize(("heads", "x_row", "begin", "end"), [(1, 2000, 3, 1999), (3, 192, 128, 192), (7, 5, 0, 1)])
def test_pointwise_kernels_copies_of_columns_slice_and_concatenate(
    heads: int, x_row: int, begin: int, end: int
) -> None:
    num_rows, width = 4, end - begin
    x = narrow(_random((num_rows, heads, x_row)), "bf16")
    out = poison((num_rows, heads, width + 9), "bf16")
    make = Recorder(x=x, out=out)
    copy_columns_launch(
        make, X, OUT, width=width, x_row=x_row, out_row=width + 9, dtype="bf16", x_at=begin, out_at=4, heads=heads
    )
    make.run(num_rows, 0)
    np.testing.assert_array_equal(out[..., 4:-5], x[..., begin:end])
    untouched = np.delete(out, np.s_[4:-5], axis=2)
    np.testing.assert_array_equal(untouched, poison(untouched.shape, "bf16"))


@pytest.mark.parametrize(
    ("heads", "dim", "rotated", "dtype"),
    [(1, 2, 2, "fp32"), (5, 64, 64, "bf16"), (3, 80, 32, "fp32"), (32, 96, 96, "fp16"), (33, 128, 64, "bf16")],
)
def test_rotary_kernels_rotate_halves(heads: int, dim: int, rotated: int, dtype: str) -> None:
    num_rows, half = 5, rotated // 2
    positions = np.array([0, 7, 900, 1, 7], np.int32)
    angles = np.arange(901)[:, None] * (1 / 100.0 ** (np.arange(half) / half))
    cosines, sines = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
    x = narrow(_random((num_rows, heads, dim)), dtype)
    exact = widen(x, dtype).astype(np.float64)
    out = poison(x.shape, dtype)
    make = Recorder(x=x, out=out, positions=positions, cosines=cosines, sines=sines)
    tables = dict(zip(("positions", "cosines", "sines"), at("positions", "cosines", "sines"), strict=True))
    rotate_launch(make, X, OUT, **tables, heads=heads, dim=dim, rotated=rotated, dtype=dtype)
    make.run(num_rows, 1e-6)
    turns = np.exp(1j * angles[positions])[:, None]
    turned = (exact[..., :half] + 1j * exact[..., half:rotated]) * turns
    want = np.concatenate([turned.real, turned.imag, exact[..., rotated:]], axis=2)
    _assert_is(out, want, dtype)


@pytest.mark.parametrize(
    ("width", "table_dtype", "out_dtype", "offset"),
    [(1, "fp32", "fp32", 0), (77, "bf16", "bf16", 2), (1030, "fp32", "bf16", 0), (64, "fp16", "fp32", 1)],
)
def test_row_kernels_gather_rows(width: int, table_dtype: str, out_dtype: str, offset: int) -> None:
    table = narrow(_random((50, width)), table_dtype)
    indices = np.array([3, 0, 47, 3], np.int32)
    out = poison((4, width), out_dtype)
    make = Recorder(table=table, indices=indices, out=out)
    rows, numbers = at("table", "indices")
    gather_launch(make, rows, numbers, OUT, width=width, table_dtype=table_dtype, out_dtype=out_dtype, offset=offset)
    make.run(4, 0)
    np.testing.assert_array_equal(out, narrow(widen(table[indices + offset], table_dtype), out_dtype))


def test_row_kernels_any_shape_becomes_powers_of_two() -> None:
    make = Recorder()
    for width in (1, 3, 1023, 1025, 5000):
        activation_launch(make, Activation.RELU, X, OUT, width=width, dtype="bf16")
        norm_launch(make, X, OUT, dim=width, epsilon=1e-5, dtype="bf16", heads=3)
    for step in make.steps:
        for name, number in step.spec.constants:
            if name in ("CHUNK", "TILE", "DIM_P"):
                assert math.log2(number).is_integer(), (step.spec, name)
        assert step.spec.num_warps in (1, 2, 4, 8, 16)
