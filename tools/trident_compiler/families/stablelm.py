"""StableLM.

Layer norms and a gated feed-forward, which stands beside attention or behind it; a part of each head is rotated; each
head of queries and keys may have a norm of its own.

Owns what config.json means for its members, the names of their tensors and the structure of the network. Never touches
a compiler, a file or a number format.
"""

from __future__ import annotations

from dataclasses import dataclass

from trident_compiler.checkpoint.json_config import JsonConfig
from trident_compiler.checkpoint.rope import read_rotary
from trident_compiler.families.decoder_config import DecoderConfig, LayerKind, read_activation, read_sizes
from trident_compiler.families.family import Family
from trident_compiler.families.ops import Ops, Value, Weights
from trident_compiler.families.parts import Norm, Parts
from trident_compiler.families.words import Activation
from trident_compiler.weights.roles import Role


@dataclass(frozen=True)
class StablelmConfig(DecoderConfig):
    """A decoder of StableLM.

    Args:
        epsilon: of the norms.
        activation: of the feed-forward's gate.
        qkv_bias: queries, keys and values are projected with a bias.
        qk_norm: each query and key head is normalised, by weights of its own.
        parallel: attention and feed-forward have the same input.
    """

    epsilon: float
    activation: Activation
    qkv_bias: bool
    qk_norm: bool
    parallel: bool


def read_stablelm_config(config: JsonConfig) -> StablelmConfig:
    """Understand the config.json of a member.

    Raises:
        CheckpointError: names the key that is missing, malformed or unsupported, with its value.
    """
    sizes = read_sizes(config, positions=4096, kv_heads=32)
    rotary = read_rotary(config, sizes.head_dim, sizes.max_position_embeddings, partial=0.25)
    return StablelmConfig(
        **sizes.fields(LayerKind(None, rotary)),
        epsilon=config.number("layer_norm_eps", 1e-5),
        activation=read_activation(config, "hidden_act", "silu"),
        qkv_bias=config.flag("use_qkv_bias"),
        qk_norm=config.flag("qk_layernorm"),
        parallel=config.flag("use_parallel_residual"),
    )


def stablelm(net: Ops[Value], config: StablelmConfig, weights: Weights) -> Value:
    """Write the whole network, or one device's share of it; return the logits, `[R, vocab]`."""
    parts = Parts(net, weights, config, Norm(config.epsilon, is_rms=False, has_bias=True))
    weights.skip(".rotary_emb.inv_freq")

    def normed_heads(heads: Value, name: str, num_heads: int) -> Value:
        sources = [f"{name}.norms.{head}.weight" for head in range(num_heads)]
        scale = weights.stacked_vector(sources, config.head_dim, Role.HEAD_VECTORS)
        return net.layer_norm(heads, scale, None, config.epsilon)

    hidden = parts.embedding("model.embed_tokens.weight")
    for layer in range(config.num_layers):
        prefix = f"model.layers.{layer}"
        attention, mlp = f"{prefix}.self_attn", f"{prefix}.mlp"
        normed = parts.norm(hidden, f"{prefix}.input_layernorm")
        query, key, value = parts.qkv(normed, *(f"{attention}.{name}_proj" for name in "qkv"), bias=config.qkv_bias)
        if config.qk_norm:
            query = normed_heads(query, f"{attention}.q_layernorm", config.num_heads)
            key = normed_heads(key, f"{attention}.k_layernorm", config.num_kv_heads)
        attended = parts.attend(layer, parts.rotated(layer, query), parts.rotated(layer, key), value)
        hidden = net.add(hidden, parts.row(attended, f"{attention}.o_proj", parts.query_size))

        if not config.parallel:
            normed = parts.norm(hidden, f"{prefix}.post_attention_layernorm")
        names = (f"{mlp}.gate_proj", f"{mlp}.up_proj", f"{mlp}.down_proj")
        hidden = net.add(hidden, parts.gated(normed, *names, config.activation))
    hidden = parts.norm(net.select_rows(hidden), "model.norm")
    return parts.logits(hidden, "model.embed_tokens.weight", "lm_head.weight")


STABLELM = Family(("stablelm",), read_stablelm_config, stablelm)
