"""Mixtures of experts in OpenVINO: how tokens choose, both forms against numpy, and which nodes the plugin makes."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import openvino as ov
import pytest
from openvino import opset15 as ops

from trident_backend.engine.openvino.network import mark_compressed_weights
from trident_compiler.families.words import Activation, Experts, Gating, Routing, Scoring
from trident_compiler.openvino.experts import MOST_BRANCHED, is_gathered
from trident_compiler.openvino.lowering import OpenVINOLowering
from trident_compiler.weights import quantization
from trident_compiler.weights.formats import BF16, FP16, FP32, INT4, INT8
from trident_compiler.weights.weights import Weight

HIDDEN, INNER = 64, 96
#: What a format loses, at most, of the largest output.
_ERRORS = {BF16: 0.02, FP16: 0.005, INT8: 0.03, INT4: 0.3}
Floats = npt.NDArray[np.float32]


def _random(*shape: int, seed: int = 0) -> Floats:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32) * np.float32(0.3)


def _weight(name: str, values: Floats, kind: str = FP32) -> Weight:
    """A stack in a format; its values are those that the network computes with, as far as the format can have them."""
    if kind == BF16:
        return Weight(name, BF16, values.shape, quantization.to_bfloat16(values))
    if kind == FP16:
        return Weight(name, FP16, values.shape, values.astype(np.float16))
    if kind == INT8:
        pairs = [quantization.int8_per_channel(each) for each in values]
        return Weight(name, INT8, values.shape, *(np.stack(parts) for parts in zip(*pairs, strict=True)))
    if kind == INT4:
        triples = [quantization.int4_groups(each) for each in values]
        return Weight(name, INT4, values.shape, *(np.stack(parts) for parts in zip(*triples, strict=True)))
    return Weight(name, FP32, values.shape, values)


def _experts(num_experts: int, kind: str = FP32, *, biases: bool = False) -> Experts:
    shapes = {"gate": (INNER, HIDDEN), "up": (INNER, HIDDEN), "down": (HIDDEN, INNER)}
    stacks = {
        name: _weight(name, _random(num_experts, *shape, seed=seed), kind)
        for seed, (name, shape) in enumerate(shapes.items())
    }
    vectors = {
        f"{name}_bias": _weight(f"{name}_bias", _random(num_experts, shape[0], seed=9 + seed))
        for seed, (name, shape) in enumerate(shapes.items())
        if biases
    }
    return Experts(**stacks, **vectors)


def _swish(net: OpenVINOLowering) -> Gating[Any]:
    return lambda gate, up: net.multiply(net.activation(gate, Activation.SILU), up)


def _clamped(net: OpenVINOLowering) -> Gating[Any]:
    def gated(gate: Any, up: Any) -> Any:
        gate, up = net.clamp(gate, None, 0.5), net.clamp(up, -0.5, 0.5)
        opened = net.activation(net.multiply_number(gate, 1.702), Activation.SIGMOID)
        return net.multiply(net.add_number(up, 1.0), net.multiply(gate, opened))

    return gated


class _Mixture:
    """A mixture alone, compiled."""

    def __init__(self, routing: Routing, experts: Experts, *, clamped: bool = False) -> None:
        self._net = OpenVINOLowering()
        gating = _clamped(self._net) if clamped else _swish(self._net)
        x = ops.parameter([-1, 1, HIDDEN], np.float32)
        logits = ops.parameter([-1, 1, routing.num_experts], np.float32)
        model = ov.Model([self._net.experts(x, logits, routing, experts, gating)], [x, logits], "mixture")
        mark_compressed_weights(model)
        properties = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0}
        self._compiled = ov.Core().compile_model(model, "CPU", properties)

    def __call__(self, x: Floats, logits: Floats) -> Floats:
        (result,) = self._compiled([x[:, None], logits[:, None]]).values()
        found: Floats = result[:, 0]
        return found

    @property
    def kinds(self) -> Counter[str]:
        """How many nodes there are of each kind after compilation."""
        return Counter(node.get_rt_info()["layerType"] for node in self._compiled.get_runtime_model().get_ops())

    def weight_types(self) -> list[str]:
        """Types of the weights of gathered products."""
        nodes = self._compiled.get_runtime_model().get_ops()
        gathered = [node for node in nodes if node.get_rt_info()["layerType"] == "GatherMatmul"]
        return [node.input(1).get_element_type().get_type_name() for node in gathered]


def _sigmoid(x: Floats) -> Floats:
    return 1 / (1 + np.exp(-x))


def _shares(routing: Routing, logits: Floats) -> Floats:
    """The weight of each expert, `[T, experts]`, token by token."""
    table = np.zeros_like(logits)
    for token, row in enumerate(logits):
        exponents = np.exp(row - row.max())
        scores = _sigmoid(row) if routing.scoring is Scoring.SIGMOID else exponents / exponents.sum()
        preferred = scores if routing.choice_bias is None else scores + routing.choice_bias.values
        groups = preferred.reshape(routing.num_groups, -1)
        best = np.argsort(-np.sort(groups)[:, -routing.group_top :].sum(1))[: routing.num_chosen_groups]
        allowed = np.full_like(groups, -np.inf)
        allowed[best] = groups[best]
        chosen = np.argsort(-allowed.reshape(-1))[: routing.num_chosen]
        weights = scores[chosen]
        if routing.normalised or routing.scoring is Scoring.SOFTMAX_OF_CHOSEN:
            weights = weights / weights.sum()
        table[token, chosen] = weights * routing.factor
    return table


def _expected(routing: Routing, experts: Experts, x: Floats, logits: Floats, *, clamped: bool = False) -> Floats:
    table, result = _shares(routing, logits), np.zeros_like(x)
    for index in range(routing.num_experts):
        gate, up = x @ experts.gate.values[index].T, x @ experts.up.values[index].T
        if experts.gate_bias is not None and experts.up_bias is not None:
            gate, up = gate + experts.gate_bias.values[index], up + experts.up_bias.values[index]
        if clamped:
            gate, up = np.minimum(gate, 0.5), np.clip(up, -0.5, 0.5)
            inner = (up + 1) * gate * _sigmoid(np.float32(1.702) * gate)
        else:
            inner = gate * _sigmoid(gate) * up
        output = inner @ experts.down.values[index].T
        if experts.down_bias is not None:
            output = output + experts.down_bias.values[index]
        result += table[:, index : index + 1] * output
    return result


_BIAS = Weight("bias", FP32, (16,), _random(16, seed=3))
ROUTINGS = {
    "softmax": Routing(16, 3),
    "softmax, not normalised": Routing(16, 3, normalised=False, factor=2.5),
    "softmax of the chosen": Routing(16, 3, Scoring.SOFTMAX_OF_CHOSEN, normalised=False),
    "groups by their best": Routing(16, 3, normalised=False, num_groups=4, num_chosen_groups=2),
    "sigmoid": Routing(
        16, 3, Scoring.SIGMOID, True, 1.5, _BIAS, num_groups=4, num_chosen_groups=2, group_top=2, sum_epsilon=1e-20
    ),
    "sigmoid, all groups": Routing(16, 3, Scoring.SIGMOID, False, choice_bias=_BIAS),
}


@pytest.mark.parametrize("routing", ROUTINGS.values(), ids=ROUTINGS)
@pytest.mark.parametrize("num_experts", [MOST_BRANCHED, 16])
def test_experts_are_chosen_and_weighted_as_numpy_does(routing: Routing, num_experts: int) -> None:
    bias = routing.choice_bias and replace(routing.choice_bias, shape=(num_experts,), values=_BIAS.values[:num_experts])
    routing = replace(routing, num_experts=num_experts, choice_bias=bias)
    experts = _experts(num_experts)
    mixture = _Mixture(routing, experts)
    x, logits = _random(20, HIDDEN, seed=5), _random(20, num_experts, seed=6) * 8
    # Tokens apart from each other, together, and in one step with others that choose the same experts.
    expected = _expected(routing, experts, x, logits)
    np.testing.assert_allclose(mixture(x, logits), expected, atol=2e-5 * np.abs(expected).max())
    np.testing.assert_allclose(mixture(x[:1], logits[:1]), expected[:1], atol=2e-5 * np.abs(expected).max())
    np.testing.assert_allclose(mixture(x[5:8], logits[5:8]), expected[5:8], atol=2e-5 * np.abs(expected).max())


@pytest.mark.parametrize("num_experts", [4, 16])
def test_experts_that_all_tokens_choose_and_that_nobody_does(num_experts: int) -> None:
    routing, experts = Routing(num_experts, 2), _experts(num_experts)
    mixture = _Mixture(routing, experts)
    x, logits = _random(9, HIDDEN, seed=5), np.tile(_random(1, num_experts, seed=6), (9, 1))
    expected = _expected(routing, experts, x, logits)
    for _ in range(2):
        np.testing.assert_allclose(mixture(x, logits), expected, atol=2e-5 * np.abs(expected).max())
        # Then others, so that a branch that was entered is left, and the other way round.
        others = _expected(routing, experts, x, -logits)
        np.testing.assert_allclose(mixture(x, -logits), others, atol=2e-5 * np.abs(others).max())


@pytest.mark.parametrize("clamped", [False, True])
@pytest.mark.parametrize("num_experts", [4, 16])
def test_experts_with_biases(num_experts: int, clamped: bool) -> None:
    routing, experts = Routing(num_experts, 2), _experts(num_experts, biases=True)
    mixture = _Mixture(routing, experts, clamped=clamped)
    x, logits = _random(9, HIDDEN, seed=5), _random(9, num_experts, seed=6)
    expected = _expected(routing, experts, x, logits, clamped=clamped)
    np.testing.assert_allclose(mixture(x, logits), expected, atol=2e-5 * np.abs(expected).max())
    # The plugin has a pattern for experts with biases and this gating alone.
    assert mixture.kinds["GatherMatmul"] == (2 if clamped and num_experts > MOST_BRANCHED else 0)
    assert mixture.kinds["If"] == (0 if clamped and num_experts > MOST_BRANCHED else num_experts)


@pytest.mark.parametrize(("kind", "stored"), [(FP32, "f32"), (FP16, None), (INT8, "i8"), (INT4, "u4")])
def test_experts_many_are_three_gathered_products_in_every_format(kind: str, stored: str | None) -> None:
    mixture = _Mixture(Routing(16, 2), _experts(16, kind))
    assert mixture.kinds["GatherMatmul"] == 3
    assert mixture.kinds["FullyConnected"] == mixture.kinds["MatMul"] == 0
    # 16 bits come out as the plugin computes; what is quantized stays so.
    assert stored is None or mixture.weight_types() == [stored] * 3


@pytest.mark.parametrize("num_experts", [4, 16])
@pytest.mark.parametrize("kind", [BF16, FP16, INT8, INT4])
def test_experts_in_other_formats_are_about_those_of_float32(kind: str, num_experts: int) -> None:
    routing = Routing(num_experts, 2)
    x, logits = _random(9, HIDDEN, seed=5), _random(9, num_experts, seed=6)
    expected = _expected(routing, _experts(num_experts), x, logits)
    found = _Mixture(routing, _experts(num_experts, kind))(x, logits)
    error = float(np.abs(found - expected).max() / np.abs(expected).max())
    assert error < _ERRORS[kind]
    clamped = _experts(num_experts, kind, biases=True)
    exact = _expected(routing, _experts(num_experts, biases=True), x, logits, clamped=True)
    found = _Mixture(routing, clamped, clamped=True)(x, logits)
    assert float(np.abs(found - exact).max() / np.abs(exact).max()) < _ERRORS[kind]


def test_experts_with_another_gating_are_branched_however_many_they_are() -> None:
    net = OpenVINOLowering()
    many, few = _experts(16), _experts(MOST_BRANCHED)
    assert is_gathered(many, _swish(net))
    assert not is_gathered(few, _swish(net))
    assert not is_gathered(many, lambda gate, up: net.multiply(net.activation(gate, Activation.GELU), up))
    assert not is_gathered(many, _clamped(net))
    assert is_gathered(_experts(16, biases=True), _clamped(net))
    assert not is_gathered(_experts(16, biases=True), _swish(net))
    assert not is_gathered(_experts(16, BF16), _swish(net)), "they would take four times their size"
