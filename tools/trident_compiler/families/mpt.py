"""MPT.

Positions are ALiBi's; norms have no biases, nor has any layer; queries, keys and values are fused and may be clamped.

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
    read_sizes,
    refuse_other,
    refuse_set,
    spelling,
)
from trident_compiler.families.family import Family
from trident_compiler.families.features import Feature
from trident_compiler.families.ops import Ops, Value, Weights
from trident_compiler.families.parts import Norm, Parts
from trident_compiler.families.words import Activation
from trident_compiler.weights.tensor_parts import fused

_NORMS = ("layernorm", "low_precision_layernorm")


@dataclass(frozen=True)
class MptConfig(DecoderConfig):
    """A decoder of MPT.

    Args:
        epsilon: of the norms.
        clip: bound on queries, keys and values; None is none.
        scale: factor on scores.
    """

    epsilon: float
    clip: float | None
    scale: float


def read_mpt_config(config: JsonConfig) -> MptConfig:
    """Understand the config.json of a member.

    Raises:
        CheckpointError: names the key that is missing, malformed or unsupported, with its value.
    """
    refuse_set(config, "logit_scale")
    refuse_other(config, {"expansion_ratio": 4, "no_bias": True})
    if config.values.get("norm_type", _NORMS[0]) not in _NORMS:
        raise config.refuse("norm_type", f"not supported; {' and '.join(_NORMS)} are")
    attention = config.section("attn_config") or JsonConfig({}, config.where)
    refuse_set(attention, "prefix_lm", "qk_ln", "qk_gn", "attn_uses_sequence_id", "kv_n_heads", "rope")
    refuse_other(
        attention,
        {"alibi": True, "alibi_bias_max": 8, "attn_type": "multihead_attention", "sliding_window_size": -1},
    )
    keys = SizeKeys(
        hidden=spelling(config, "d_model", "hidden_size"),
        heads=spelling(config, "n_heads", "num_attention_heads"),
        layers=spelling(config, "n_layers", "num_hidden_layers"),
        positions="max_seq_len",
        kv_heads=None,
    )
    inner = 4 * config.integer(keys.hidden)
    sizes = read_sizes(config, keys, positions=2048, intermediate=inner, tied=True)
    return MptConfig(
        **sizes.fields(LayerKind()),
        epsilon=config.number("layer_norm_epsilon", 1e-5),
        clip=attention.number("clip_qkv", 0.0, zero=True) or None,
        scale=attention.number("softmax_scale", sizes.head_dim**-0.5),
    )


def mpt(net: Ops[Value], config: MptConfig, weights: Weights) -> Value:
    """Write the whole network, or one device's share of it; return the logits, `[R, vocab]`."""
    parts = Parts(net, weights, config, Norm(config.epsilon, is_rms=False))
    slopes = parts.alibi_slopes()
    hidden = parts.embedding("transformer.wte.weight")
    for layer in range(config.num_layers):
        prefix = f"transformer.blocks.{layer}"
        normed = parts.norm(hidden, f"{prefix}.norm_1")
        layers = fused(f"{prefix}.attn.Wqkv", q=parts.query_size, k=parts.kv_size, v=parts.kv_size)
        query, key, value = parts.qkv(normed, *layers)
        if config.clip is not None:
            query, key, value = (net.clamp(each, -config.clip, config.clip) for each in (query, key, value))
        attended = parts.attend(layer, query, key, value, scale=config.scale, alibi_slopes=slopes)
        hidden = net.add(hidden, parts.row(attended, f"{prefix}.attn.out_proj", parts.query_size))

        normed = parts.norm(hidden, f"{prefix}.norm_2")
        names = (f"{prefix}.ffn.up_proj", f"{prefix}.ffn.down_proj")
        hidden = net.add(hidden, parts.plain(normed, *names, Activation.GELU))
    hidden = parts.norm(net.select_rows(hidden), "transformer.norm_f")
    return parts.logits(hidden, "transformer.wte.weight", "lm_head.weight")


MPT = Family(("mpt",), read_mpt_config, mpt, "transformer.", (Feature.ALIBI,))
