"""Persimmon.

Queries, keys and values are fused head by head, and each query and key head is normalised; a part of each head is
rotated; the feed-forward squares what is positive.

Owns what config.json means for its members, the names of their tensors and the structure of the network. Never touches
a compiler, a file or a number format.
"""

from __future__ import annotations

from dataclasses import dataclass

from trident_compiler.checkpoint.json_config import JsonConfig
from trident_compiler.checkpoint.rope import read_rotary
from trident_compiler.families.decoder_config import DecoderConfig, LayerKind, SizeKeys, read_activation, read_sizes
from trident_compiler.families.family import Family
from trident_compiler.families.ops import Ops, Value, Weights
from trident_compiler.families.parts import Norm, Parts
from trident_compiler.families.words import Activation
from trident_compiler.weights.tensor_parts import fused


@dataclass(frozen=True)
class PersimmonConfig(DecoderConfig):
    """A decoder of Persimmon.

    Args:
        epsilon: of the norms.
        activation: of the feed-forward.
        qk_norm: each query and key head is normalised.
    """

    epsilon: float
    activation: Activation
    qk_norm: bool


def read_persimmon_config(config: JsonConfig) -> PersimmonConfig:
    """Understand the config.json of a member.

    Raises:
        CheckpointError: names the key that is missing, malformed or unsupported, with its value.
    """
    sizes = read_sizes(config, SizeKeys(kv_heads=None), positions=16384)
    rotary = read_rotary(config, sizes.head_dim, sizes.max_position_embeddings, partial=0.5)
    return PersimmonConfig(
        **sizes.fields(LayerKind(None, rotary)),
        epsilon=config.number("layer_norm_eps", 1e-5),
        activation=read_activation(config, "hidden_act", "relu2"),
        qk_norm=config.flag("qk_layernorm", default=True),
    )


def persimmon(net: Ops[Value], config: PersimmonConfig, weights: Weights) -> Value:
    """Write the whole network, or one device's share of it; return the logits, `[R, vocab]`."""
    parts = Parts(net, weights, config, Norm(config.epsilon, is_rms=False, has_bias=True))
    weights.skip(".rotary_emb.inv_freq")
    size = config.head_dim
    hidden = parts.embedding("model.embed_tokens.weight")
    for layer in range(config.num_layers):
        prefix = f"model.layers.{layer}"
        attention, mlp = f"{prefix}.self_attn", f"{prefix}.mlp"
        normed = parts.norm(hidden, f"{prefix}.input_layernorm")
        layers = fused(f"{attention}.query_key_value", groups=config.num_heads, q=size, k=size, v=size)
        query, key, value = parts.qkv(normed, *layers, bias=True)
        if config.qk_norm:
            query = parts.norm(query, f"{attention}.q_layernorm", size)
            key = parts.norm(key, f"{attention}.k_layernorm", size)
        attended = parts.attend(layer, parts.rotated(layer, query), parts.rotated(layer, key), value)
        hidden = net.add(hidden, parts.row(attended, f"{attention}.dense", parts.query_size, bias=True))

        normed = parts.norm(hidden, f"{prefix}.post_attention_layernorm")
        names = (f"{mlp}.dense_h_to_4h", f"{mlp}.dense_4h_to_h")
        hidden = net.add(hidden, parts.plain(normed, *names, config.activation, bias=True))
    hidden = parts.norm(net.select_rows(hidden), "model.final_layernorm")
    return parts.logits(hidden, "model.embed_tokens.weight", "lm_head.weight")


PERSIMMON = Family(("persimmon",), read_persimmon_config, persimmon)
