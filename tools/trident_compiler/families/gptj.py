"""GPT-J and CodeGen.

Attention and feed-forward share one norm and stand side by side; neighbouring features are rotated against each other,
so the rows of queries and keys are sorted when they are read. CodeGen fuses queries, values and keys in four groups.

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
    SizeKeys,
    read_activation,
    read_sizes,
    refuse_set,
    spelling,
)
from trident_compiler.families.family import Family
from trident_compiler.families.ops import Ops, Value, Weights
from trident_compiler.families.parts import Norm, Parts
from trident_compiler.families.words import Activation
from trident_compiler.weights.tensor_parts import LinearPart, fused, halves_of_pairs

#: Buffers that follow from the configuration.
_MASKS = (".attn.bias", ".attn.masked_bias", ".attn.causal_mask")
_FUSED_GROUPS = 4


@dataclass(frozen=True)
class GptjConfig(DecoderConfig):
    """A decoder of the GPT-J family.

    Args:
        epsilon: of the norms.
        activation: of the feed-forward.
        is_fused: queries, values and keys are one stored layer.
    """

    epsilon: float
    activation: Activation
    is_fused: bool


def read_gptj_config(config: JsonConfig) -> GptjConfig:
    """Understand the config.json of a member.

    Raises:
        CheckpointError: names the key that is missing, malformed or unsupported, with its value.
    """
    refuse_set(config, "rope_theta", "rope_scaling", "rope_parameters")
    keys = SizeKeys(
        hidden=spelling(config, "n_embd", "hidden_size"),
        heads=spelling(config, "n_head", "num_attention_heads"),
        layers=spelling(config, "n_layer", "num_hidden_layers"),
        positions=spelling(config, "n_positions", "max_position_embeddings"),
        intermediate="n_inner",
        kv_heads=None,
    )
    sizes = read_sizes(config, keys, positions=2048, intermediate=4 * config.integer(keys.hidden))
    rotated = config.integer("rotary_dim", 64, most=sizes.head_dim)
    if rotated % 2:
        raise config.refuse("rotary_dim", "must be even")
    if sizes.num_heads * sizes.head_dim % _FUSED_GROUPS:
        raise config.refuse(keys.hidden, f"must be a multiple of {_FUSED_GROUPS}")
    rotary = read_rotary(config, sizes.head_dim, sizes.max_position_embeddings, rotated=rotated)
    return GptjConfig(
        **sizes.fields(LayerKind(None, rotary)),
        epsilon=config.number("layer_norm_epsilon", 1e-5),
        activation=read_activation(config, "activation_function", "gelu_new"),
        is_fused=config.values["model_type"] == "codegen",
    )


def gptj(net: Ops[Value], config: GptjConfig, weights: Weights) -> Value:
    """Write the whole network, or one device's share of it; return the logits, `[R, vocab]`."""
    parts = Parts(net, weights, config, Norm(config.epsilon, is_rms=False, has_bias=True))
    weights.skip(*_MASKS)
    part = parts.query_size // _FUSED_GROUPS
    hidden = parts.embedding("transformer.wte.weight")
    for layer in range(config.num_layers):
        prefix = f"transformer.h.{layer}"
        normed = parts.norm(hidden, f"{prefix}.ln_1")
        if config.is_fused:
            layers = fused(f"{prefix}.attn.qkv_proj", groups=_FUSED_GROUPS, q=part, v=part, k=part)
            query, value, key = layers
        else:
            query, value, key = (LinearPart(f"{prefix}.attn.{name}_proj") for name in "qvk")
        rotary = config.layers[layer].rotary
        order = halves_of_pairs(config.num_heads, config.head_dim, rotary.rotated if rotary else 0)
        q, k, v = parts.qkv(normed, query.reordered(order), key.reordered(order), value)
        attended = parts.attend(layer, parts.rotated(layer, q), parts.rotated(layer, k), v)
        output = parts.row(attended, f"{prefix}.attn.out_proj", parts.query_size)
        names = (f"{prefix}.mlp.fc_in", f"{prefix}.mlp.fc_out")
        inner = parts.plain(normed, *names, config.activation, bias=True)
        hidden = net.add(net.add(hidden, output), inner)
    hidden = parts.norm(net.select_rows(hidden), "transformer.ln_f")
    return parts.logits(hidden, "transformer.wte.weight", "lm_head.weight", bias=True)


GPTJ = Family(("gptj", "codegen"), read_gptj_config, gptj, "transformer.")
