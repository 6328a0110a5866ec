"""gpt-oss: sinks, windows in every second layer, and experts with biases and a bounded gating.

All experts of a layer are one tensor, in which gate and up projection alternate column by column.

Owns what config.json means, where the tensors are stored and the gating. Never chooses an expert.
"""

from __future__ import annotations

from dataclasses import dataclass

from trident_compiler.checkpoint.json_config import JsonConfig
from trident_compiler.checkpoint.rope import read_rotary
from trident_compiler.families.decoder_config import LayerKind, read_sizes, read_windows, refuse_other
from trident_compiler.families.family import Family
from trident_compiler.families.features import Feature
from trident_compiler.families.mixture import MixtureConfig, read_routing_size
from trident_compiler.families.ops import Ops, Value, Weights
from trident_compiler.families.parts import Norm, Parts
from trident_compiler.families.sequential import layers_of, self_attention
from trident_compiler.families.words import Activation, Experts, Gating, Routing, Scoring
from trident_compiler.weights.roles import Role
from trident_compiler.weights.tensor_parts import TensorPart
from trident_compiler.weights.weights import Weight

_YARN = {
    "rope_type": "yarn",
    "factor": 32.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
    "original_max_position_embeddings": 4096,
}


@dataclass(frozen=True, kw_only=True)
class GptOssConfig(MixtureConfig):
    """A decoder of gpt-oss.

    Args:
        limit: bound on the gate from above, and on the size of the up projection.
        slope: factor in the gate's sigmoid.
    """

    limit: float
    slope: float


def read_gpt_oss_config(config: JsonConfig) -> GptOssConfig:
    """Understand the config.json of this family.

    Raises:
        CheckpointError: names the key that is missing, malformed or unsupported, with its value.
    """
    refuse_other(config, {"hidden_act": "silu"})
    sizes = read_sizes(config, positions=131072, kv_heads=8, head_dim=64)
    if config.values.get("rope_parameters") is None and config.values.get("rope_scaling") is None:
        config = JsonConfig({**config.values, "rope_parameters": _YARN}, config.where)
    rotary = read_rotary(config, sizes.head_dim, sizes.max_position_embeddings, theta=150000.0)
    kinds = tuple("full_attention" if layer % 2 else "sliding_attention" for layer in range(sizes.num_layers))
    windows = read_windows(config, sizes.num_layers, 128, kinds)
    bias = config.flag("attention_bias", default=True)
    experts, chosen = read_routing_size(config, "num_local_experts", "num_experts_per_tok", (128, 4))
    return GptOssConfig(
        **sizes.fields(*(LayerKind(window, rotary) for window in windows)),
        norm=Norm(config.number("rms_norm_eps", 1e-5)),
        qkv_bias=bias,
        output_bias=bias,
        has_sinks=True,
        routing=Routing(experts, chosen, Scoring.SOFTMAX_OF_CHOSEN, normalised=False),
        expert_size=sizes.intermediate_size,
        is_sparse=(True,) * sizes.num_layers,
        limit=config.number("swiglu_limit", 7.0),
        slope=config.number("swiglu_alpha", 1.702),
    )


def gpt_oss(net: Ops[Value], config: GptOssConfig, weights: Weights) -> Value:
    """Write the whole network, or one device's share of it; return the logits, `[R, vocab]`.

    Raises:
        CheckpointError: a tensor is missing or has another shape than the configuration says.
    """
    return layers_of(net, config, weights, self_attention, _feed_forward)


def _feed_forward(parts: Parts[Value], config: GptOssConfig, layer: int, x: Value) -> Value:
    mlp, num_experts = f"model.layers.{layer}.mlp", config.routing.num_experts
    logits = parts.whole(x, f"{mlp}.router", num_experts, config.hidden_size, bias=True, exact=True)
    stored = _Stored(parts.weights, config, f"{mlp}.experts")
    experts = Experts(
        stored.matrices(0, "gate"), stored.matrices(1, "up"), stored.down(),
        stored.vectors(0, "gate"), stored.vectors(1, "up"), stored.down_bias(),
    )  # fmt: skip
    return parts.net.experts(x, logits, config.routing, experts, _gating(parts.net, config))


def _gating(net: Ops[Value], config: GptOssConfig) -> Gating[Value]:
    def gated(gate: Value, up: Value) -> Value:
        gate, up = net.clamp(gate, None, config.limit), net.clamp(up, -config.limit, config.limit)
        opened = net.activation(net.multiply_number(gate, config.slope), Activation.SIGMOID)
        return net.multiply(net.add_number(up, 1.0), net.multiply(gate, opened))

    return gated


@dataclass(frozen=True)
class _Stored:
    """The experts of one layer, as they are stored."""

    weights: Weights
    config: GptOssConfig
    name: str

    def matrices(self, first: int, label: str) -> Weight:
        """The gate or the up projection: every second column from the first, or from the one after it."""
        hidden, inner = self.config.hidden_size, self.config.expert_size
        shape, rows = (self._count, hidden, 2 * inner), range(first, 2 * inner, 2)
        sources = [
            TensorPart(f"{self.name}.gate_up_proj", shape, f"{label} {index}", index, transposed=True, rows=rows)
            for index in range(self._count)
        ]
        return self.weights.stack(sources, inner, hidden, Role.COLUMN)

    def vectors(self, first: int, label: str) -> Weight:
        """The biases of the same."""
        inner = self.config.expert_size
        shape, rows = (self._count, 2 * inner), range(first, 2 * inner, 2)
        sources = [
            TensorPart(f"{self.name}.gate_up_proj_bias", shape, f"{label} {index}", index, rows=rows)
            for index in range(self._count)
        ]
        return self.weights.stacked_vector(sources, inner, Role.COLUMN_BIAS)

    def down(self) -> Weight:
        """The down projection."""
        hidden, inner = self.config.hidden_size, self.config.expert_size
        shape = (self._count, inner, hidden)
        sources = [
            TensorPart(f"{self.name}.down_proj", shape, str(index), index, transposed=True)
            for index in range(self._count)
        ]
        return self.weights.stack(sources, hidden, inner, Role.ROW)

    def down_bias(self) -> Weight:
        """The biases of the same."""
        hidden = self.config.hidden_size
        shape = (self._count, hidden)
        sources = [TensorPart(f"{self.name}.down_proj_bias", shape, str(each), each) for each in range(self._count)]
        return self.weights.stacked_vector(sources, hidden)

    @property
    def _count(self) -> int:
        return self.config.routing.num_experts


GPT_OSS = Family(
    ("gpt_oss",), read_gpt_oss_config, gpt_oss, features=(Feature.SINKS, Feature.EXPERTS)
)  # fmt: skip
