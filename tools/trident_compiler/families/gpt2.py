"""GPT-2 and GPT-BigCode, of which StarCoder is one.

Positions are learned. GPT-2 stores its matrices transposed; GPT-BigCode has one head of keys and values, or fuses
queries, keys and values head by head.

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
    refuse_set,
    spelling,
)
from trident_compiler.families.family import Family
from trident_compiler.families.ops import Ops, Value, Weights
from trident_compiler.families.parts import Norm, Parts
from trident_compiler.families.words import Activation
from trident_compiler.weights.tensor_parts import LinearPart, fused

#: Buffers that follow from the configuration.
_MASKS = (".attn.bias", ".attn.masked_bias")


@dataclass(frozen=True)
class Gpt2Config(DecoderConfig):
    """A decoder of the GPT-2 family.

    Args:
        epsilon: of the norms.
        activation: of the feed-forward.
        transposed: matrices are stored as `[in, out]`.
        fused_by_head: a head's queries, keys and values are stored side by side.
        scaled: scores are divided by the root of the head's size.
        scaled_by_layer: scores are also divided by the layer's number, from 1.
    """

    epsilon: float
    activation: Activation
    transposed: bool
    fused_by_head: bool
    scaled: bool
    scaled_by_layer: bool


def read_gpt2_config(config: JsonConfig) -> Gpt2Config:
    """Understand the config.json of a member.

    Raises:
        CheckpointError: names the key that is missing, malformed or unsupported, with its value.
    """
    is_bigcode = config.values["model_type"] == "gpt_bigcode"
    refuse_set(config, "add_cross_attention")
    multi_query = is_bigcode and config.flag("multi_query", default=True)
    keys = SizeKeys(
        hidden=spelling(config, "n_embd", "hidden_size"),
        heads=spelling(config, "n_head", "num_attention_heads"),
        layers=spelling(config, "n_layer", "num_hidden_layers"),
        positions=spelling(config, "n_positions", "max_position_embeddings"),
        intermediate="n_inner",
        kv_heads=None,
    )
    inner = 4 * config.integer(keys.hidden)
    sizes = read_sizes(config, keys, positions=1024, intermediate=inner, kv_heads=1 if multi_query else None, tied=True)
    return Gpt2Config(
        **sizes.fields(LayerKind()),
        epsilon=config.number("layer_norm_epsilon", 1e-5),
        activation=read_activation(config, "activation_function", "gelu_pytorch_tanh" if is_bigcode else "gelu_new"),
        transposed=not is_bigcode,
        fused_by_head=is_bigcode and not multi_query,
        scaled=config.flag("scale_attn_weights", default=True),
        scaled_by_layer=not is_bigcode and config.flag("scale_attn_by_inverse_layer_idx"),
    )


def gpt2(net: Ops[Value], config: Gpt2Config, weights: Weights) -> Value:
    """Write the whole network, or one device's share of it; return the logits, `[R, vocab]`."""
    parts = Parts(net, weights, config, Norm(config.epsilon, is_rms=False, has_bias=True))
    weights.skip(*_MASKS)
    groups = config.num_heads if config.fused_by_head else 1
    sizes = {"q": parts.query_size // groups, "k": parts.kv_size // groups, "v": parts.kv_size // groups}
    hidden = parts.positioned(parts.embedding("transformer.wte.weight"), "transformer.wpe.weight")
    for layer in range(config.num_layers):
        prefix = f"transformer.h.{layer}"
        scale = (config.head_dim**-0.5 if config.scaled else 1) / (layer + 1 if config.scaled_by_layer else 1)

        normed = parts.norm(hidden, f"{prefix}.ln_1")
        layers = fused(f"{prefix}.attn.c_attn", transposed=config.transposed, groups=groups, **sizes)
        attended = parts.attend(layer, *parts.qkv(normed, *layers, bias=True), scale=scale)
        output, up, down = (
            LinearPart(f"{prefix}.{name}", transposed=config.transposed)
            for name in ("attn.c_proj", "mlp.c_fc", "mlp.c_proj")
        )
        hidden = net.add(hidden, parts.row(attended, output, parts.query_size, bias=True))

        normed = parts.norm(hidden, f"{prefix}.ln_2")
        hidden = net.add(hidden, parts.plain(normed, up, down, config.activation, bias=True))
    hidden = parts.norm(net.select_rows(hidden), "transformer.ln_f")
    return parts.logits(hidden, "transformer.wte.weight", "lm_head.weight")


GPT2 = Family(("gpt2", "gpt_bigcode"), read_gpt2_config, gpt2, "transformer.")
