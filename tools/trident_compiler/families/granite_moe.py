"""Granite with mixtures: all experts of a layer are one tensor, the gate's rows before the up projection's.

Owns what config.json means and where the tensors are stored. Never chooses an expert.
"""

from __future__ import annotations

from trident_compiler.checkpoint.json_config import JsonConfig
from trident_compiler.checkpoint.rope import read_rotary
from trident_compiler.families.decoder_config import LayerKind, read_activation, read_sizes
from trident_compiler.families.family import Family
from trident_compiler.families.features import Feature
from trident_compiler.families.mixture import MixtureConfig, experts_of, mixed, read_routing_size
from trident_compiler.families.ops import Ops, Value, Weights
from trident_compiler.families.parts import Norm, Parts
from trident_compiler.families.sequential import layers_of, self_attention
from trident_compiler.families.words import Routing, Scoring
from trident_compiler.weights.tensor_parts import TensorPart, fused


def read_granite_moe_config(config: JsonConfig) -> MixtureConfig:
    """Understand the config.json of a member.

    Raises:
        CheckpointError: names the key that is missing, malformed or unsupported, with its value.
    """
    sizes = read_sizes(config, positions=2048)
    bias = config.flag("attention_bias")
    experts, chosen = read_routing_size(config, "num_local_experts", "num_experts_per_tok", (8, 2))
    shared = 0
    if config.values["model_type"] == "granitemoeshared":
        shared = config.integer("shared_intermediate_size", 1024, least=0)
    return MixtureConfig(
        **sizes.fields(LayerKind(None, read_rotary(config, sizes.head_dim, sizes.max_position_embeddings))),
        norm=Norm(config.number("rms_norm_eps", 1e-6)),
        activation=read_activation(config, "hidden_act", "silu"),
        qkv_bias=bias,
        output_bias=bias,
        attention_scale=config.number("attention_multiplier", 1.0),
        embedding_factor=config.number("embedding_multiplier", 1.0),
        residual_factor=config.number("residual_multiplier", 1.0),
        logits_factor=1 / config.number("logits_scaling", 1.0),
        routing=Routing(experts, chosen, Scoring.SOFTMAX_OF_CHOSEN, normalised=False),
        expert_size=sizes.intermediate_size,
        is_sparse=(True,) * sizes.num_layers,
        shared_size=shared,
    )


def granite_moe(net: Ops[Value], config: MixtureConfig, weights: Weights) -> Value:
    """Write the whole network, or one device's share of it; return the logits, `[R, vocab]`.

    Raises:
        CheckpointError: a tensor is missing or has another shape than the configuration says.
    """
    return layers_of(net, config, weights, self_attention, _feed_forward)


def _feed_forward(parts: Parts[Value], config: MixtureConfig, layer: int, x: Value) -> Value:
    prefix, count = f"model.layers.{layer}", config.routing.num_experts
    block, hidden, inner = f"{prefix}.block_sparse_moe", config.hidden_size, config.expert_size
    both, down = (count, 2 * inner, hidden), (count, hidden, inner)
    gates, ups = (
        [
            TensorPart(f"{block}.input_linear.weight", both, f"{label} {index}", index, rows=rows)
            for index in range(count)
        ]
        for label, rows in (("gate", range(inner)), ("up", range(inner, 2 * inner)))
    )
    downs = [TensorPart(f"{block}.output_linear.weight", down, str(index), index) for index in range(count)]
    result = mixed(parts, config, f"{block}.router.layer", x, experts_of(parts, config, gates, ups, downs))
    if not config.shared_size:
        return result
    shared = f"{prefix}.shared_mlp"
    gate, up = fused(f"{shared}.input_linear", gate=config.shared_size, up=config.shared_size)
    out = parts.gated(x, gate, up, f"{shared}.output_linear", config.activation, inner_size=config.shared_size)
    return parts.net.add(result, out)


GRANITE_MOE = Family(
    ("granitemoe", "granitemoeshared"), read_granite_moe_config, granite_moe, features=(Feature.EXPERTS,)
)  # fmt: skip
