"""Layers that compute, against torch, one at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tests.tensorrt.interpreter import evaluate
from tests.tensorrt.small_networks import FLOATS, KINDS, bits, close, constant, normal, recorded, run, trt


@pytest.mark.parametrize(("kind", "torch_kind"), KINDS)
def test_interpreter_every_result_has_the_precision_of_its_tensor(kind: Any, torch_kind: torch.dtype) -> None:
    def write(net: Any, a: Any, b: Any) -> Any:
        total = net.add_elementwise(a, b, trt.ElementWiseOperation.SUM).get_output(0)
        return net.add_elementwise(total, b, trt.ElementWiseOperation.PROD).get_output(0)

    a, b = (torch.from_numpy(normal(7, 5, seed=seed)).to(torch_kind) for seed in (1, 2))
    result = evaluate(recorded(write, {"a": (kind, (-1, 5)), "b": (kind, (7, -1))}), {"a": bits(a), "b": bits(b)})
    np.testing.assert_array_equal(result["out0"], bits((a + b) * b))


_BINARY: dict[str, Any] = {
    "SUM": torch.add,
    "PROD": torch.mul,
    "SUB": torch.sub,
    "DIV": torch.div,
    "MAX": torch.maximum,
    "MIN": torch.minimum,
    "FLOOR_DIV": torch.floor_divide,
    "EQUAL": torch.eq,
    "GREATER": torch.gt,
    "LESS": torch.lt,
}


@pytest.mark.parametrize("operation", _BINARY)
def test_interpreter_elementwise_layers_broadcast_as_torch_does(operation: str) -> None:
    def write(net: Any, a: Any, b: Any) -> Any:
        return net.add_elementwise(a, b, getattr(trt.ElementWiseOperation, operation)).get_output(0)

    a, b = normal(4, 1, 3), normal(1, 5, 3, seed=1)
    b[0, 0] = a[0, 0]
    expected = _BINARY[operation](torch.from_numpy(a), torch.from_numpy(b)).numpy()
    np.testing.assert_allclose(run(write, a=a, b=b), expected, rtol=1e-6)


def test_interpreter_integers_are_exact_and_divided_towards_zero() -> None:
    def write(net: Any, a: Any, b: Any) -> Any:
        return net.add_elementwise(a, b, trt.ElementWiseOperation.DIV).get_output(0)

    a, b = np.array([7, -7, 7, -7, 2**31 - 1], np.int32), np.array([2, 2, -2, -2, 1], np.int32)
    expected = torch.div(torch.from_numpy(a), torch.from_numpy(b), rounding_mode="trunc").numpy()
    np.testing.assert_array_equal(run(write, a=a, b=b), expected)


@pytest.mark.parametrize(
    ("operation", "expected"), [("AND", [0, 0, 0, 1]), ("OR", [0, 1, 1, 1]), ("XOR", [0, 1, 1, 0])]
)
def test_interpreter_booleans_are_joined(operation: str, expected: list[int]) -> None:
    def write(net: Any, a: Any, b: Any) -> Any:
        return net.add_elementwise(a, b, getattr(trt.ElementWiseOperation, operation)).get_output(0)

    result = run(write, a=np.array([False, False, True, True]), b=np.array([False, True, False, True]))
    np.testing.assert_array_equal(result, np.array(expected, bool))


_UNARY: dict[str, Any] = {
    "EXP": torch.exp,
    "SQRT": lambda x: torch.sqrt(x.abs()),
    "RECIP": torch.reciprocal,
    "ABS": torch.abs,
    "NEG": torch.neg,
    "SIN": torch.sin,
    "COS": torch.cos,
    "CEIL": torch.ceil,
    "FLOOR": torch.floor,
    "ERF": torch.erf,
    "SIGN": torch.sign,
    "ROUND": torch.round,
    "ISNAN": torch.isnan,
}


@pytest.mark.parametrize("operation", _UNARY)
def test_interpreter_unary_layers_are_torchs(operation: str) -> None:
    def write(net: Any, x: Any) -> Any:
        return net.add_unary(x, getattr(trt.UnaryOperation, operation)).get_output(0)

    x = np.append(normal(50) * 3, [0.5, 1.5, 2.5]).astype(np.float32)
    x = np.abs(x) if operation == "SQRT" else x
    np.testing.assert_allclose(run(write, x=x), _UNARY[operation](torch.from_numpy(x)).numpy(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "function"),
    [
        ("SIGMOID", torch.sigmoid),
        ("RELU", torch.relu),
        ("TANH", torch.tanh),
        ("GELU_ERF", torch.nn.functional.gelu),
        ("GELU_TANH", lambda x: torch.nn.functional.gelu(x, approximate="tanh")),
    ],
)
def test_interpreter_activations_are_torchs(kind: str, function: Any) -> None:
    def write(net: Any, x: Any) -> Any:
        return net.add_activation(x, getattr(trt.ActivationType, kind)).get_output(0)

    x = normal(100) * 4
    np.testing.assert_allclose(run(write, x=x), function(torch.from_numpy(x)).numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("operation", "function"), [("SUM", torch.sum), ("AVG", torch.mean), ("MAX", torch.amax), ("MIN", torch.amin)]
)
@pytest.mark.parametrize(("axes", "keep"), [((1,), True), ((0, 2), False)])
def test_interpreter_reductions_are_torchs(operation: str, function: Any, axes: tuple[int, ...], keep: bool) -> None:
    def write(net: Any, x: Any) -> Any:
        return net.add_reduce(
            x, getattr(trt.ReduceOperation, operation), sum(1 << axis for axis in axes), keep
        ).get_output(0)

    x = normal(3, 4, 5)
    expected = function(torch.from_numpy(x), dim=axes, keepdim=keep).numpy()
    np.testing.assert_allclose(run(write, x=x), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("axis", [0, 2])
def test_interpreter_softmax_is_torchs(axis: int) -> None:
    def write(net: Any, x: Any) -> Any:
        layer = net.add_softmax(x)
        layer.axes = 1 << axis
        return layer.get_output(0)

    x = normal(3, 4, 5) * 20
    np.testing.assert_allclose(run(write, x=x), torch.softmax(torch.from_numpy(x), axis).numpy(), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("is_largest", [True, False])
def test_interpreter_topk_is_torchs_and_takes_its_count_from_a_tensor(is_largest: bool) -> None:
    operation = trt.TopKOperation.MAX if is_largest else trt.TopKOperation.MIN

    def write(net: Any, x: Any, k: Any) -> Any:
        static, dynamic = (net.add_topk(x, operation, 4, 2) for _ in range(2))
        dynamic.set_input(1, k)
        return static.get_output(0), static.get_output(1), dynamic.get_output(0), dynamic.get_output(1)

    program = recorded(write, {"x": (trt.float32, (-1, -1)), "k": (trt.int32, ())})
    x = normal(6, 30)
    results = evaluate(program, {"x": x, "k": np.array(7, np.int32)})
    for number, count in ((0, 4), (2, 7)):
        values, indices = torch.topk(torch.from_numpy(x), count, dim=1, largest=is_largest)
        np.testing.assert_array_equal(results[f"out{number}"], values.numpy())
        np.testing.assert_array_equal(results[f"out{number + 1}"], indices.numpy())
        assert results[f"out{number + 1}"].dtype == np.int32


def test_interpreter_of_equals_topk_takes_the_first() -> None:
    def write(net: Any, x: Any) -> Any:
        return net.add_topk(x, trt.TopKOperation.MAX, 3, 2).get_output(1)

    x = np.random.default_rng(0).integers(0, 3, (20, 64)).astype(np.float32)
    expected = [np.lexsort((np.arange(64), -row))[:3] for row in x]
    np.testing.assert_array_equal(run(write, x=x), expected)


@pytest.mark.parametrize(("kind", "torch_kind", "tolerance"), FLOATS)
@pytest.mark.parametrize(("first", "second"), [("NONE", "TRANSPOSE"), ("TRANSPOSE", "NONE"), ("NONE", "VECTOR")])
def test_interpreter_products_of_matrices_are_torchs(
    kind: Any, torch_kind: torch.dtype, tolerance: float, first: str, second: str
) -> None:
    def write(net: Any, a: Any, b: Any) -> Any:
        ways = (getattr(trt.MatrixOperation, way) for way in (first, second))
        return net.add_matrix_multiply(a, next(ways), b, next(ways)).get_output(0)

    a = torch.from_numpy(normal(1, 2, 3, 8)).to(torch_kind)
    b = torch.from_numpy(normal(*((5, 1, 8) if second == "VECTOR" else (5, 1, 6, 8)), seed=1)).to(torch_kind)
    expected = torch.matmul(a, b[..., None])[..., 0] if second == "VECTOR" else torch.matmul(a, b.transpose(2, 3))
    a = a.transpose(2, 3).contiguous() if first == "TRANSPOSE" else a
    b = b.transpose(2, 3).contiguous() if second == "NONE" else b
    program = recorded(write, {"a": (kind, (-1,) * 4), "b": (kind, (-1,) * b.ndim)})
    close(evaluate(program, {"a": bits(a), "b": bits(b)})["out0"], expected, tolerance, kind.name)


def test_interpreter_casts_go_towards_zero_and_round_to_nearest() -> None:
    def write(net: Any, x: Any) -> Any:
        whole = net.add_cast(x, trt.int32).get_output(0)
        return whole, *(net.add_cast(x, kind).get_output(0) for kind in (trt.float16, trt.bfloat16, trt.bool))

    x = np.append(normal(50) * 5, [0.0, 2.5, -2.5]).astype(np.float32)
    results = evaluate(recorded(write, {"x": (trt.float32, (-1,))}), {"x": x})
    tensor = torch.from_numpy(x)
    for number, kind in enumerate((torch.int32, torch.float16, torch.bfloat16, torch.bool)):
        np.testing.assert_array_equal(results[f"out{number}"], bits(tensor.to(kind)))


def test_interpreter_select_takes_by_condition() -> None:
    def write(net: Any, c: Any, a: Any, b: Any) -> Any:
        return net.add_select(c, a, b).get_output(0)

    c, a, b = normal(4, 1) > 0, normal(4, 5), normal(1, 5, seed=1)
    expected = torch.where(torch.from_numpy(c), torch.from_numpy(a), torch.from_numpy(b)).numpy()
    np.testing.assert_array_equal(run(write, c=c, a=a, b=b), expected)


def test_interpreter_running_sums_are_torchs() -> None:
    def write(net: Any, x: Any) -> Any:
        axis = constant(net, np.array(1, np.int32))
        ways = ((False, False), (True, False), (False, True), (True, True))
        return tuple(net.add_cumulative(x, axis, trt.CumulativeOperation.SUM, *way).get_output(0) for way in ways)

    x = normal(3, 6)
    results = evaluate(recorded(write, {"x": (trt.float32, (-1, -1))}), {"x": x})
    tensor = torch.from_numpy(x)
    sums = torch.cumsum(tensor, 1)
    behind = sums[:, -1:] - sums + tensor
    for number, expected in enumerate((sums, sums - tensor, behind, behind - tensor)):
        np.testing.assert_allclose(results[f"out{number}"], expected.numpy(), atol=1e-6)
