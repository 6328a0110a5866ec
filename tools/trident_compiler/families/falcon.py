"""Falcon, in its three layouts.

The newer architecture fuses the queries of each key head with it and its values; before, all queries come first and
there is one key head, or each head has its own keys and values. Rotary positions, or ALiBi, which is scaled as the
scores are.

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
    spelling,
)
from trident_compiler.families.family import Family
from trident_compiler.families.features import Feature
from trident_compiler.families.ops import Ops, Value, Weights
from trident_compiler.families.parts import Norm, Parts
from trident_compiler.families.words import Activation
from trident_compiler.weights.tensor_parts import fused


@dataclass(frozen=True)
class FalconConfig(DecoderConfig):
    """A decoder of Falcon.

    Args:
        epsilon: of the norms.
        activation: of the feed-forward.
        bias: the linear layers have biases.
        alibi: scores have a bias by distance.
        fused_by_group: each key head is stored with its queries.
        parallel: attention and feed-forward stand side by side.
        num_norms: of a parallel layer's input; with 2 the feed-forward has its own.
    """

    epsilon: float
    activation: Activation
    bias: bool
    alibi: bool
    fused_by_group: bool
    parallel: bool
    num_norms: int


def read_falcon_config(config: JsonConfig) -> FalconConfig:
    """Understand the config.json of a member.

    Raises:
        CheckpointError: names the key that is missing, malformed or unsupported, with its value.
    """
    is_new = config.flag("new_decoder_architecture")
    one_key_head = not is_new and config.flag("multi_query", default=True)
    keys = SizeKeys(
        hidden=spelling(config, "hidden_size", "n_embed"),
        intermediate="ffn_hidden_size",
        kv_heads="num_kv_heads" if is_new else None,
    )
    inner = 4 * config.integer(keys.hidden)
    sizes = read_sizes(
        config, keys, positions=2048, intermediate=inner, kv_heads=1 if one_key_head else None, tied=True
    )
    parallel = config.flag("parallel_attn", default=True)
    num_norms = config.integer("num_ln_in_parallel_attn", 2 if is_new else 1, most=2)
    if is_new and not parallel:
        raise config.refuse("parallel_attn", "must be true in the new decoder architecture")
    if not is_new and num_norms != 1:
        raise config.refuse("num_ln_in_parallel_attn", "must be 1 in the old decoder architecture")
    alibi = config.flag("alibi")
    rotary = None if alibi else read_rotary(config, sizes.head_dim, sizes.max_position_embeddings)
    return FalconConfig(
        **sizes.fields(LayerKind(None, rotary)),
        epsilon=config.number("layer_norm_epsilon", 1e-5),
        activation=read_activation(config, "activation", "gelu"),
        bias=config.flag("bias"),
        alibi=alibi,
        fused_by_group=is_new or not one_key_head,
        parallel=parallel,
        num_norms=num_norms,
    )


def falcon(net: Ops[Value], config: FalconConfig, weights: Weights) -> Value:
    """Write the whole network, or one device's share of it; return the logits, `[R, vocab]`."""
    parts = Parts(net, weights, config, Norm(config.epsilon, is_rms=False, has_bias=True))
    weights.skip(".inv_freq")
    groups = config.num_kv_heads if config.fused_by_group else 1
    query_rows, kv_rows = parts.query_size // groups, parts.kv_size // groups
    slopes = parts.alibi_slopes(config.head_dim**-0.5) if config.alibi else None
    hidden = parts.embedding("transformer.word_embeddings.weight")
    for layer in range(config.num_layers):
        prefix = f"transformer.h.{layer}"
        normed = parts.norm(hidden, f"{prefix}.{'input_layernorm' if config.num_norms == 1 else 'ln_attn'}")
        stored = f"{prefix}.self_attention.query_key_value"
        layers = fused(stored, groups=groups, q=query_rows, k=kv_rows, v=kv_rows)
        query, key, value = parts.qkv(normed, *layers, bias=config.bias)
        query, key = parts.rotated(layer, query), parts.rotated(layer, key)
        attended = parts.attend(layer, query, key, value, alibi_slopes=slopes)
        output = parts.row(attended, f"{prefix}.self_attention.dense", parts.query_size, bias=config.bias)

        summed = net.add(hidden, output)
        if not config.parallel:
            normed = parts.norm(summed, f"{prefix}.post_attention_layernorm")
        elif config.num_norms == 2:
            normed = parts.norm(hidden, f"{prefix}.ln_mlp")
        names = (f"{prefix}.mlp.dense_h_to_4h", f"{prefix}.mlp.dense_4h_to_h")
        hidden = net.add(summed, parts.plain(normed, *names, config.activation, bias=config.bias))
    hidden = parts.norm(net.select_rows(hidden), "transformer.ln_f")
    return parts.logits(hidden, "transformer.word_embeddings.weight", "lm_head.weight")


FALCON = Family(("falcon",), read_falcon_config, falcon, "transformer.", (Feature.ALIBI,))
