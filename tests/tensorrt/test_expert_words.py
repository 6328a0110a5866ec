"""Mixtures of experts in networks for TensorRT compute what transformers' own modules do, in all formats."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from transformers import DeepseekV3Config, GptOssConfig, MixtralConfig
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3MoE
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssMLP
from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock

from tests.tensorrt.number_formats import Array, decode
from tests.tensorrt.small_networks import normal
from tests.tensorrt.word_networks import computed, weight
from trident_compiler.families.words import Activation, Experts, Gating, Routing, Scoring
from trident_compiler.tensorrt.lowering import TensorRTLowering
from trident_compiler.weights import quantization
from trident_compiler.weights.quantization import as_they_are
from trident_compiler.weights.weights import Weight

COUNT, CHOSEN, HIDDEN, INNER, TOKENS = 8, 3, 64, 32, 19
X = normal(TOKENS, HIDDEN, seed=1)
SIZES = {"hidden_size": HIDDEN, "num_experts_per_tok": CHOSEN}


@dataclass(frozen=True)
class Mixture:
    """A mixture in both forms.

    Args:
        expected: transformers' outputs, `[tokens, hidden]`.
        router: the matrix and the bias of the router.
        experts: the weights.
        routing: how they are chosen.
        gating: what is between the projections.
    """

    expected: torch.Tensor
    router: tuple[Array, Array | None]
    experts: Experts
    routing: Routing
    gating: Callable[[TensorRTLowering], Gating[Any]]

    def write(self, net: TensorRTLowering, x: Any) -> Any:
        matrix, bias = self.router
        logits = net.linear(x, weight("router", matrix), None if bias is None else weight("bias", bias))
        return net.experts(x, logits, self.routing, self.experts, self.gating(net))


def usual_gating(net: TensorRTLowering) -> Gating[Any]:
    return lambda gate, up: net.multiply(net.activation(gate, Activation.SILU), up)


def bounded_gating(net: TensorRTLowering) -> Gating[Any]:
    def gated(gate: Any, up: Any) -> Any:
        gate, up = net.clamp(gate, None, 7.0), net.clamp(up, -7.0, 7.0)
        glu = net.multiply(gate, net.activation(net.multiply_number(gate, 1.702), Activation.SIGMOID))
        return net.multiply(net.add_number(up, 1.0), glu)

    return gated


def filled(module: torch.nn.Module) -> dict[str, Array]:
    """Fill a module with random numbers; return them."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in [*module.parameters(), *module.buffers()]:
            parameter.copy_(torch.randn(parameter.shape) / 4)
    return {name: values.numpy() for name, values in module.state_dict().items()}


def mixtral() -> Mixture:
    module = MixtralSparseMoeBlock(MixtralConfig(**SIZES, intermediate_size=INNER, num_local_experts=COUNT))
    values = filled(module.eval())
    gate, up = np.split(values["experts.gate_up_proj"], 2, 1)
    experts = Experts(*map(weight, ("gate", "up", "down"), (gate, up, values["experts.down_proj"])))
    with torch.no_grad():
        expected = module(torch.from_numpy(X)[None])[0]
    return Mixture(expected, (values["gate.weight"], None), experts, Routing(COUNT, CHOSEN), usual_gating)


def gpt_oss() -> Mixture:
    module = GptOssMLP(GptOssConfig(**SIZES, intermediate_size=INNER, num_local_experts=COUNT))
    values = filled(module.eval())
    both, biases = values["experts.gate_up_proj"].swapaxes(1, 2), values["experts.gate_up_proj_bias"]
    down = values["experts.down_proj"].swapaxes(1, 2)
    parts = (both[:, ::2], both[:, 1::2], down, biases[:, ::2], biases[:, 1::2], values["experts.down_proj_bias"])
    experts = Experts(*map(weight, ("gate", "up", "down", "gate bias", "up bias", "down bias"), parts))
    with torch.no_grad():
        expected = module(torch.from_numpy(X)[None])[0][0]
    routing = Routing(COUNT, CHOSEN, Scoring.SOFTMAX_OF_CHOSEN, normalised=False)
    return Mixture(expected, (values["router.weight"], values["router.bias"]), experts, routing, bounded_gating)


def deepseek() -> Mixture:
    config = DeepseekV3Config(
        **SIZES, moe_intermediate_size=INNER, num_local_experts=COUNT, n_routed_experts=COUNT, n_shared_experts=1,
        n_group=4, topk_group=2, routed_scaling_factor=2.5, norm_topk_prob=True,
    )  # fmt: skip
    module = DeepseekV3MoE(config)
    values = filled(module.eval())
    gate, up = np.split(values["experts.gate_up_proj"], 2, 1)
    experts = Experts(*map(weight, ("gate", "up", "down"), (gate, up, values["experts.down_proj"])))
    with torch.no_grad():
        hidden = torch.from_numpy(X)[None]
        expected = (module(hidden) - module.shared_experts(hidden))[0]
    routing = Routing(
        COUNT,
        CHOSEN,
        Scoring.SIGMOID,
        factor=2.5,
        choice_bias=weight("choice", values["gate.e_score_correction_bias"]),
        num_groups=4,
        num_chosen_groups=2,
        group_top=2,
        sum_epsilon=1e-20,
    )
    return Mixture(expected, (values["gate.weight"], None), experts, routing, usual_gating)


MIXTURES = {"mixtral": mixtral, "gpt_oss": gpt_oss, "deepseek_v3": deepseek}


@pytest.mark.parametrize("name", MIXTURES)
def test_expert_words_compute_what_transformers_does(name: str) -> None:
    mixture = MIXTURES[name]()
    found = computed(mixture.write, X)
    np.testing.assert_allclose(found, mixture.expected.numpy(), rtol=0, atol=1e-5 * mixture.expected.abs().max().item())


@pytest.mark.parametrize("name", MIXTURES)
def test_expert_words_in_bf16_the_usual_token_is_right(name: str) -> None:
    # A token whose experts are nearly alike may get others.
    mixture = MIXTURES[name]()
    errors = np.abs(computed(mixture.write, X, "bf16") - mixture.expected.numpy()).max(1)
    assert np.median(errors) < 2e-2 * mixture.expected.abs().max().item()


def test_expert_words_what_nobody_chose_counts_nothing_however_large_it_is() -> None:
    """Single numbers overflow in float16 in an expert that has no token."""
    mixture = mixtral()
    router = np.zeros((COUNT, HIDDEN), np.float32)
    bias = np.arange(COUNT, dtype=np.float32)[::-1].copy()
    gate, up, down = mixture.experts.gate.values, mixture.experts.up.values.copy(), mixture.experts.down.values
    small = Mixture(mixture.expected, (router, bias), mixture.experts, mixture.routing, usual_gating)
    up[CHOSEN:] *= 1e6
    huge = Experts(*map(weight, ("gate", "up", "down"), (gate, up.clip(-6e4, 6e4), down)))
    large = Mixture(mixture.expected, (router, bias), huge, mixture.routing, usual_gating)
    np.testing.assert_array_equal(computed(large.write, X, "fp16"), computed(small.write, X, "fp16"))


def quantized(stack: Weight, kind: str) -> tuple[Weight, Array]:
    """A stack in a format, and the numbers that it stands for."""
    convert: Any = {
        "int8": quantization.int8_per_channel,
        "int4": quantization.int4_symmetric,
        "fp8": quantization.e4m3_per_channel,
    }[kind]
    values, scales = (
        np.stack(parts) for parts in zip(*(convert(each, as_they_are) for each in stack.values), strict=True)
    )
    stored = decode(values, {"int8": "INT8", "int4": "INT4", "fp8": "FP8"}[kind], stack.shape).astype(np.float32)
    groups = stored.reshape(*stack.shape[:2], scales.shape[2], -1) * scales[..., None]
    return Weight(stack.name, kind, stack.shape, values, scales), groups.reshape(stack.shape)


@pytest.mark.parametrize(("kind", "tolerance"), [("int8", 1e-5), ("int4", 1e-5), ("fp8", 5e-2)])
def test_expert_words_stacks_may_be_quantized(kind: str, tolerance: float) -> None:
    mixture = mixtral()
    packed, plain = zip(
        *(quantized(each, kind) for each in (mixture.experts.gate, mixture.experts.up, mixture.experts.down)),
        strict=True,
    )
    same = Mixture(mixture.expected, mixture.router, Experts(*packed), mixture.routing, usual_gating)
    numbers = Experts(*map(weight, ("gate", "up", "down"), plain))
    unpacked = Mixture(mixture.expected, mixture.router, numbers, mixture.routing, usual_gating)
    found, expected = computed(same.write, X), computed(unpacked.write, X)
    # In float8 activations are rounded too.
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * np.abs(expected).max())
