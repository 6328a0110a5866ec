"""Bloom.

The embeddings are normalised; positions are ALiBi's; queries, keys and values are fused head by head.

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
    refuse_set,
    spelling,
)
from trident_compiler.families.family import Family
from trident_compiler.families.features import Feature
from trident_compiler.families.ops import Ops, Value, Weights
from trident_compiler.families.parts import Norm, Parts
from trident_compiler.families.words import Activation
from trident_compiler.weights.tensor_parts import fused


@dataclass(frozen=True)
class BloomConfig(DecoderConfig):
    """A decoder of Bloom.

    Args:
        epsilon: of the norms.
    """

    epsilon: float


def read_bloom_config(config: JsonConfig) -> BloomConfig:
    """Understand the config.json of a member.

    Raises:
        CheckpointError: names the key that is missing, malformed or unsupported, with its value.
    """
    refuse_set(config, "apply_residual_connection_post_layernorm")
    keys = SizeKeys(
        hidden=spelling(config, "hidden_size", "n_embed"),
        heads=spelling(config, "n_head", "num_attention_heads"),
        layers=spelling(config, "n_layer", "num_hidden_layers"),
        positions="seq_length",
        intermediate="n_inner",
        kv_heads=None,
    )
    sizes = read_sizes(config, keys, positions=2048, intermediate=4 * config.integer(keys.hidden), tied=True)
    return BloomConfig(**sizes.fields(LayerKind()), epsilon=config.number("layer_norm_epsilon", 1e-5))


def bloom(net: Ops[Value], config: BloomConfig, weights: Weights) -> Value:
    """Write the whole network, or one device's share of it; return the logits, `[R, vocab]`."""
    parts = Parts(net, weights, config, Norm(config.epsilon, is_rms=False, has_bias=True))
    size, slopes = config.head_dim, parts.alibi_slopes()
    hidden = parts.embedding("transformer.word_embeddings.weight")
    hidden = parts.norm(hidden, "transformer.word_embeddings_layernorm")
    for layer in range(config.num_layers):
        prefix = f"transformer.h.{layer}"
        normed = parts.norm(hidden, f"{prefix}.input_layernorm")
        layers = fused(f"{prefix}.self_attention.query_key_value", groups=config.num_heads, q=size, k=size, v=size)
        attended = parts.attend(layer, *parts.qkv(normed, *layers, bias=True), alibi_slopes=slopes)
        output = parts.row(attended, f"{prefix}.self_attention.dense", parts.query_size, bias=True)
        hidden = net.add(hidden, output)

        normed = parts.norm(hidden, f"{prefix}.post_attention_layernorm")
        names = (f"{prefix}.mlp.dense_h_to_4h", f"{prefix}.mlp.dense_4h_to_h")
        hidden = net.add(hidden, parts.plain(normed, *names, Activation.GELU_TANH, bias=True))
    hidden = parts.norm(net.select_rows(hidden), "transformer.ln_f")
    return parts.logits(hidden, "transformer.word_embeddings.weight", "lm_head.weight")


BLOOM = Family(("bloom",), read_bloom_config, bloom, "transformer.", (Feature.ALIBI,))
