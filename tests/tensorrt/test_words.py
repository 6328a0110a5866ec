"""Each word of the network language for TensorRT computes what PyTorch does."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from tests.tensorrt.number_formats import Array
from tests.tensorrt.small_networks import normal
from tests.tensorrt.word_networks import computed, weight
from trident_compiler.families.words import Activation
from trident_compiler.tensorrt.lowering import TensorRTLowering

X = 2 * normal(7, 24)
T = torch.from_numpy(X)
SCALE, BIAS = normal(24, seed=1), normal(24, seed=2)
#: How far results in a format may be apart.
TOLERANCES = {"fp32": 1e-5, "fp16": 4e-3, "bf16": 3e-2}
ACTIVATIONS: dict[Activation, Any] = {
    Activation.SILU: functional.silu,
    Activation.GELU: functional.gelu,
    Activation.GELU_TANH: lambda x: functional.gelu(x, approximate="tanh"),
    Activation.RELU: functional.relu,
    Activation.RELU_SQUARED: lambda x: functional.relu(x) ** 2,
    Activation.SIGMOID: torch.sigmoid,
    Activation.TANH: torch.tanh,
}


def same(found: Array, expected: torch.Tensor, compute: str = "fp32") -> None:
    tolerance = TOLERANCES[compute]
    np.testing.assert_allclose(found, expected.numpy(), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("compute", TOLERANCES)
@pytest.mark.parametrize("kind", Activation)
def test_words_activations(kind: Activation, compute: str) -> None:
    same(computed(lambda net, x: net.activation(x, kind), X, compute), ACTIVATIONS[kind](T), compute)


@pytest.mark.parametrize(("low", "high"), [(-1.0, 0.5), (None, 0.5), (-1.0, None)])
def test_words_clamp(low: float | None, high: float | None) -> None:
    same(computed(lambda net, x: net.clamp(x, low, high), X), T.clamp(low, high))


@pytest.mark.parametrize("compute", TOLERANCES)
def test_words_numbers_are_not_rounded_to_the_format_of_activations(compute: str) -> None:
    dtype = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[compute]
    rough = T.to(dtype).float()
    product = computed(lambda net, x: net.multiply_number(x, 0.2201), X, compute)
    np.testing.assert_array_equal(product, (rough * 0.2201).to(dtype).float().numpy())
    total = computed(lambda net, x: net.add_number(x, 1.0001), X, compute)
    np.testing.assert_array_equal(total, (rough + 1.0001).to(dtype).float().numpy())


@pytest.mark.parametrize("compute", TOLERANCES)
@pytest.mark.parametrize(("scale", "bias"), [(SCALE, BIAS), (SCALE, None), (None, None)])
def test_words_layer_norm(scale: Array | None, bias: Array | None, compute: str) -> None:
    def write(net: TensorRTLowering, x: Any) -> Any:
        scales, biases = (None if each is None else weight("vector", each) for each in (scale, bias))
        return net.layer_norm(x, scales, biases, 1e-5)

    scales, biases = (None if each is None else torch.from_numpy(each) for each in (scale, bias))
    same(computed(write, X + 3, compute), functional.layer_norm(T + 3, (24,), scales, biases, 1e-5), compute)


@pytest.mark.parametrize("shape", [(6,), (24,), (4, 6)])
@pytest.mark.parametrize("is_rms", [True, False])
def test_words_norms_of_heads_have_a_scale_for_all_or_for_each(shape: tuple[int, ...], is_rms: bool) -> None:
    scale = normal(*shape, seed=3)

    def write(net: TensorRTLowering, x: Any) -> Any:
        heads = net.split_heads(x, 4)
        norm = weight("scale", scale)
        return net.merge_heads(net.rms_norm(heads, norm, 1e-6) if is_rms else net.layer_norm(heads, norm, None, 1e-6))

    heads = T.reshape(7, 4, 6)
    normed = functional.rms_norm(heads, (6,), eps=1e-6) if is_rms else functional.layer_norm(heads, (6,), eps=1e-6)
    same(computed(write, X), (normed * torch.from_numpy(scale).reshape(-1, 6)).reshape(7, 24))


def test_words_an_rms_norm_may_have_no_scale() -> None:
    same(computed(lambda net, x: net.rms_norm(x, None, 1e-6), X), functional.rms_norm(T, (24,), eps=1e-6))


def test_words_slices_and_concatenations_of_heads_and_of_wide_values() -> None:
    def write(net: TensorRTLowering, x: Any) -> Any:
        heads = net.split_heads(x, 4)
        turned = net.merge_heads(net.concat(net.slice(heads, 4, 6), net.slice(heads, 0, 4)))
        return net.concat(net.slice(turned, 20, 24), turned)

    turned = T.reshape(7, 4, 6).roll(2, -1).reshape(7, 24)
    same(computed(write, X), torch.cat([turned[:, 20:], turned], 1))


def test_words_each_head_by_its_own_matrix() -> None:
    matrices = normal(4, 10, 6, seed=4)
    found = computed(lambda net, x: net.merge_heads(net.head_linear(net.split_heads(x, 4), weight("m", matrices))), X)
    expected = torch.einsum("thi,hoi->tho", T.reshape(7, 4, 6), torch.from_numpy(matrices)).reshape(7, 40)
    same(found, expected)


def test_words_learned_positions_begin_at_an_offset() -> None:
    table = normal(12, 24, seed=5)
    found = computed(lambda net, x: net.add(x, net.position_embedding(weight("p", table), 2)), X)
    same(found, T + torch.from_numpy(table[2:9]))


def test_words_a_value_times_a_number_for_each_token() -> None:
    same(computed(lambda net, x: net.multiply(x, net.slice(x, 0, 1)), X), T * T[:, :1])
