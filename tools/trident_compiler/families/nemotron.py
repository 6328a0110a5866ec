"""Nemotron and Minitron.

Layer norms store how much their scale differs from 1; the feed-forward squares what is positive; a part of each head
is rotated.

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


@dataclass(frozen=True)
class NemotronConfig(DecoderConfig):
    """A decoder of Nemotron.

    Args:
        epsilon: of the norms.
        activation: of the feed-forward.
        bias: attention's layers have biases.
        mlp_bias: the feed-forward's layers have biases.
    """

    epsilon: float
    activation: Activation
    bias: bool
    mlp_bias: bool


def read_nemotron_config(config: JsonConfig) -> NemotronConfig:
    """Understand the config.json of a member.

    Raises:
        CheckpointError: names the key that is missing, malformed or unsupported, with its value.
    """
    sizes = read_sizes(config, positions=4096)
    rotary = read_rotary(config, sizes.head_dim, sizes.max_position_embeddings, partial=0.5)
    return NemotronConfig(
        **sizes.fields(LayerKind(None, rotary)),
        epsilon=config.number("norm_eps", 1e-5),
        activation=read_activation(config, "hidden_act", "relu2"),
        bias=config.flag("attention_bias"),
        mlp_bias=config.flag("mlp_bias"),
    )


def nemotron(net: Ops[Value], config: NemotronConfig, weights: Weights) -> Value:
    """Write the whole network, or one device's share of it; return the logits, `[R, vocab]`."""
    parts = Parts(net, weights, config, Norm(config.epsilon, is_rms=False, has_bias=True, plus=1.0))
    weights.skip(".rotary_emb.inv_freq")
    hidden = parts.embedding("model.embed_tokens.weight")
    for layer in range(config.num_layers):
        prefix = f"model.layers.{layer}"
        attention, mlp = f"{prefix}.self_attn", f"{prefix}.mlp"
        normed = parts.norm(hidden, f"{prefix}.input_layernorm")
        query, key, value = parts.qkv(normed, *(f"{attention}.{name}_proj" for name in "qkv"), bias=config.bias)
        attended = parts.attend(layer, parts.rotated(layer, query), parts.rotated(layer, key), value)
        hidden = net.add(hidden, parts.row(attended, f"{attention}.o_proj", parts.query_size, bias=config.bias))

        normed = parts.norm(hidden, f"{prefix}.post_attention_layernorm")
        names = (f"{mlp}.up_proj", f"{mlp}.down_proj")
        hidden = net.add(hidden, parts.plain(normed, *names, config.activation, bias=config.mlp_bias))
    hidden = parts.norm(net.select_rows(hidden), "model.norm")
    return parts.logits(hidden, "model.embed_tokens.weight", "lm_head.weight")


NEMOTRON = Family(("nemotron",), read_nemotron_config, nemotron)
