"""Phi 3, 3.5 and 4.

Queries, keys and values are fused, and so are the feed-forward's gate and up projection; rotary positions may be
longrope's, and of a part of each head.

Owns what config.json means for its members, the names of their tensors and the structure of the network. Never touches
a compiler, a file or a number format.
"""

from __future__ import annotations

from dataclasses import dataclass

from trident_compiler.checkpoint.json_config import JsonConfig
from trident_compiler.checkpoint.rope import read_rotary
from trident_compiler.families.decoder_config import (
    DecoderConfig,
    LayerKind,
    read_activation,
    read_sizes,
    refuse_set,
)
from trident_compiler.families.family import Family
from trident_compiler.families.ops import Ops, Value, Weights
from trident_compiler.families.parts import Norm, Parts
from trident_compiler.families.words import Activation
from trident_compiler.weights.tensor_parts import fused

_ORIGINAL = "original_max_position_embeddings"


@dataclass(frozen=True)
class Phi3Config(DecoderConfig):
    """A decoder of Phi 3.

    Args:
        epsilon: of the norms.
        activation: of the feed-forward's gate.
    """

    epsilon: float
    activation: Activation


def read_phi3_config(config: JsonConfig) -> Phi3Config:
    """Understand the config.json of a member.

    Raises:
        CheckpointError: names the key that is missing, malformed or unsupported, with its value.
    """
    refuse_set(config, "attention_bias", "mlp_bias")
    sizes = read_sizes(config, positions=4096)
    with_original = JsonConfig({**config.values, _ORIGINAL: config.integer(_ORIGINAL, 4096)}, config.where)
    rotary = read_rotary(with_original, sizes.head_dim, sizes.max_position_embeddings, partial=1.0)
    has_window = config.values.get("sliding_window") is not None
    return Phi3Config(
        **sizes.fields(LayerKind(config.integer("sliding_window") if has_window else None, rotary)),
        epsilon=config.number("rms_norm_eps", 1e-5),
        activation=read_activation(config, "hidden_act", "silu"),
    )


def phi3(net: Ops[Value], config: Phi3Config, weights: Weights) -> Value:
    """Write the whole network, or one device's share of it; return the logits, `[R, vocab]`."""
    parts = Parts(net, weights, config, Norm(config.epsilon))
    weights.skip(".rotary_emb.inv_freq")
    inner = config.intermediate_size
    hidden = parts.embedding("model.embed_tokens.weight")
    for layer in range(config.num_layers):
        prefix = f"model.layers.{layer}"
        attention, mlp = f"{prefix}.self_attn", f"{prefix}.mlp"
        normed = parts.norm(hidden, f"{prefix}.input_layernorm")
        layers = fused(f"{attention}.qkv_proj", q=parts.query_size, k=parts.kv_size, v=parts.kv_size)
        query, key, value = parts.qkv(normed, *layers)
        attended = parts.attend(layer, parts.rotated(layer, query), parts.rotated(layer, key), value)
        hidden = net.add(hidden, parts.row(attended, f"{attention}.o_proj", parts.query_size))

        normed = parts.norm(hidden, f"{prefix}.post_attention_layernorm")
        gate, up = fused(f"{mlp}.gate_up_proj", gate=inner, up=inner)
        hidden = net.add(hidden, parts.gated(normed, gate, up, f"{mlp}.down_proj", config.activation))
    hidden = parts.norm(net.select_rows(hidden), "model.norm")
    return parts.logits(hidden, "model.embed_tokens.weight", "lm_head.weight")


PHI3 = Family(("phi3",), read_phi3_config, phi3)
