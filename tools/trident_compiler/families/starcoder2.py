"""StarCoder2.

Layer norms, biases, a feed-forward without a gate, and a sliding window in every layer.

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
    refuse_other,
)
from trident_compiler.families.family import Family
from trident_compiler.families.ops import Ops, Value, Weights
from trident_compiler.families.parts import Norm, Parts
from trident_compiler.families.words import Activation


@dataclass(frozen=True)
class Starcoder2Config(DecoderConfig):
    """A decoder of StarCoder2.

    Args:
        epsilon: of the norms.
        activation: of the feed-forward.
        bias: the linear layers have biases.
    """

    epsilon: float
    activation: Activation
    bias: bool


def read_starcoder2_config(config: JsonConfig) -> Starcoder2Config:
    """Understand the config.json of a member.

    Raises:
        CheckpointError: names the key that is missing, malformed or unsupported, with its value.
    """
    refuse_other(config, {"norm_type": "layer_norm", "mlp_type": "default"})
    sizes = read_sizes(config, positions=4096, kv_heads=2, tied=True)
    rotary = read_rotary(config, sizes.head_dim, sizes.max_position_embeddings)
    has_window = config.values.get("sliding_window") is not None
    return Starcoder2Config(
        **sizes.fields(LayerKind(config.integer("sliding_window") if has_window else None, rotary)),
        epsilon=config.number("norm_epsilon", 1e-5),
        activation=read_activation(config, "hidden_act", "gelu_pytorch_tanh"),
        bias=config.flag("use_bias", default=True),
    )


def starcoder2(net: Ops[Value], config: Starcoder2Config, weights: Weights) -> Value:
    """Write the whole network, or one device's share of it; return the logits, `[R, vocab]`."""
    parts = Parts(net, weights, config, Norm(config.epsilon, is_rms=False, has_bias=True))
    hidden = parts.embedding("model.embed_tokens.weight")
    for layer in range(config.num_layers):
        prefix = f"model.layers.{layer}"
        attention, mlp = f"{prefix}.self_attn", f"{prefix}.mlp"
        normed = parts.norm(hidden, f"{prefix}.input_layernorm")
        query, key, value = parts.qkv(normed, *(f"{attention}.{name}_proj" for name in "qkv"), bias=config.bias)
        attended = parts.attend(layer, parts.rotated(layer, query), parts.rotated(layer, key), value)
        hidden = net.add(hidden, parts.row(attended, f"{attention}.o_proj", parts.query_size, bias=config.bias))

        normed = parts.norm(hidden, f"{prefix}.post_attention_layernorm")
        inner = parts.plain(normed, f"{mlp}.c_fc", f"{mlp}.c_proj", config.activation, bias=config.bias)
        hidden = net.add(hidden, inner)
    hidden = parts.norm(net.select_rows(hidden), "model.norm")
    return parts.logits(hidden, "model.embed_tokens.weight", "lm_head.weight")


STARCODER2 = Family(("starcoder2",), read_starcoder2_config, starcoder2)
