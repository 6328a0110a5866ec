"""OPT.

Positions are learned, and the first is the table's third row. Norms come before each branch, or after its sum in the
smallest but one; there embeddings are narrower than hidden values, too.

Owns what config.json means for its members, the names of their tensors and the structure of the network. Never touches
a compiler, a file or a number format.
"""

from __future__ import annotations

from dataclasses import dataclass

from trident_compiler.checkpoint.json_config import JsonConfig
from trident_compiler.families.decoder_config import (
    DecoderConfig,
    LayerKind,
    SizeKeys,
    read_activation,
    read_sizes,
)
from trident_compiler.families.family import Family
from trident_compiler.families.ops import Ops, Value, Weights
from trident_compiler.families.parts import Norm, Parts
from trident_compiler.families.words import Activation

_EPSILON = 1e-5
_FIRST_POSITION = 2


@dataclass(frozen=True)
class OptConfig(DecoderConfig):
    """A decoder of OPT.

    Args:
        activation: of the feed-forward.
        table_width: features of an embedding.
        norm_first: each branch's input is normalised; else its sum with the input.
        final_norm: what the output projection takes is normalised.
        bias: the linear layers have biases.
        norm_has_weights: norms have scales and biases.
    """

    activation: Activation
    table_width: int
    norm_first: bool
    final_norm: bool
    bias: bool
    norm_has_weights: bool


def read_opt_config(config: JsonConfig) -> OptConfig:
    """Understand the config.json of a member.

    Raises:
        CheckpointError: names the key that is missing, malformed or unsupported, with its value.
    """
    sizes = read_sizes(config, SizeKeys(intermediate="ffn_dim", kv_heads=None), positions=2048, tied=True)
    norm_first = config.flag("do_layer_norm_before", default=True)
    return OptConfig(
        **sizes.fields(LayerKind()),
        activation=read_activation(config, "activation_function", "relu"),
        table_width=config.integer("word_embed_proj_dim", sizes.hidden_size),
        norm_first=norm_first,
        final_norm=norm_first and not config.flag("_remove_final_layer_norm"),
        bias=config.flag("enable_bias", default=True),
        norm_has_weights=config.flag("layer_norm_elementwise_affine", default=True),
    )


def opt(net: Ops[Value], config: OptConfig, weights: Weights) -> Value:
    """Write the whole network, or one device's share of it; return the logits, `[R, vocab]`."""
    has_weights = config.norm_has_weights
    parts = Parts(net, weights, config, Norm(_EPSILON, is_rms=False, has_bias=has_weights, has_scale=has_weights))
    hidden_size, width = config.hidden_size, config.table_width
    hidden = parts.embedding("model.decoder.embed_tokens.weight", width)
    if width != hidden_size:
        hidden = parts.whole(hidden, "model.decoder.project_in", hidden_size, width)
    hidden = parts.positioned(hidden, "model.decoder.embed_positions.weight", _FIRST_POSITION)
    for layer in range(config.num_layers):
        prefix = f"model.decoder.layers.{layer}"
        attention_norm, inner_norm = f"{prefix}.self_attn_layer_norm", f"{prefix}.final_layer_norm"

        normed = parts.norm(hidden, attention_norm) if config.norm_first else hidden
        heads = parts.qkv(normed, *(f"{prefix}.self_attn.{name}_proj" for name in "qkv"), bias=config.bias)
        attended = parts.attend(layer, *heads)
        output = parts.row(attended, f"{prefix}.self_attn.out_proj", parts.query_size, bias=config.bias)
        hidden = net.add(hidden, output)
        hidden = hidden if config.norm_first else parts.norm(hidden, attention_norm)

        normed = parts.norm(hidden, inner_norm) if config.norm_first else hidden
        inner = parts.plain(normed, f"{prefix}.fc1", f"{prefix}.fc2", config.activation, bias=config.bias)
        hidden = net.add(hidden, inner)
        hidden = hidden if config.norm_first else parts.norm(hidden, inner_norm)
    hidden = net.select_rows(hidden)
    if config.final_norm:
        hidden = parts.norm(hidden, "model.decoder.final_layer_norm")
    if width != hidden_size:
        hidden = parts.whole(hidden, "model.decoder.project_out", width, hidden_size)
    return parts.logits(hidden, "model.decoder.embed_tokens.weight", "lm_head.weight", in_size=width)


OPT = Family(("opt",), read_opt_config, opt)
