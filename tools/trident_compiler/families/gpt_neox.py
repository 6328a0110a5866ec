"""GPT-NeoX, of which Pythia is one.

Queries, keys and values are fused head by head; a part of each head is rotated; attention and feed-forward stand side
by side, or one behind the other.

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

#: Buffers that follow from the configuration.
_BUFFERS = (".attention.bias", ".attention.masked_bias", ".rotary_emb.inv_freq")


@dataclass(frozen=True)
class GptNeoxConfig(DecoderConfig):
    """A decoder of GPT-NeoX.

    Args:
        epsilon: of the norms.
        activation: of the feed-forward.
        parallel: the feed-forward's input is the layer's, as attention's is.
        bias: attention's layers have biases.
    """

    epsilon: float
    activation: Activation
    parallel: bool
    bias: bool


def read_gpt_neox_config(config: JsonConfig) -> GptNeoxConfig:
    """Understand the config.json of a member.

    Raises:
        CheckpointError: names the key that is missing, malformed or unsupported, with its value.
    """
    sizes = read_sizes(config, SizeKeys(kv_heads=None), positions=2048)
    rotary = read_rotary(
        config,
        sizes.head_dim,
        sizes.max_position_embeddings,
        theta_key="rotary_emb_base",
        partial=config.number("rotary_pct", 0.25),
    )
    return GptNeoxConfig(
        **sizes.fields(LayerKind(None, rotary)),
        epsilon=config.number("layer_norm_eps", 1e-5),
        activation=read_activation(config, "hidden_act", "gelu"),
        parallel=config.flag("use_parallel_residual", default=True),
        bias=config.flag("attention_bias", default=True),
    )


def gpt_neox(net: Ops[Value], config: GptNeoxConfig, weights: Weights) -> Value:
    """Write the whole network, or one device's share of it; return the logits, `[R, vocab]`."""
    parts = Parts(net, weights, config, Norm(config.epsilon, is_rms=False, has_bias=True))
    weights.skip(*_BUFFERS)
    size = config.head_dim
    hidden = parts.embedding("gpt_neox.embed_in.weight")
    for layer in range(config.num_layers):
        prefix = f"gpt_neox.layers.{layer}"
        normed = parts.norm(hidden, f"{prefix}.input_layernorm")
        layers = fused(f"{prefix}.attention.query_key_value", groups=config.num_heads, q=size, k=size, v=size)
        query, key, value = parts.qkv(normed, *layers, bias=config.bias)
        attended = parts.attend(layer, parts.rotated(layer, query), parts.rotated(layer, key), value)
        output = parts.row(attended, f"{prefix}.attention.dense", parts.query_size, bias=config.bias)

        summed = net.add(hidden, output)
        normed = parts.norm(hidden if config.parallel else summed, f"{prefix}.post_attention_layernorm")
        names = (f"{prefix}.mlp.dense_h_to_4h", f"{prefix}.mlp.dense_4h_to_h")
        hidden = net.add(summed, parts.plain(normed, *names, config.activation, bias=True))
    hidden = parts.norm(net.select_rows(hidden), "gpt_neox.final_layer_norm")
    return parts.logits(hidden, "gpt_neox.embed_in.weight", "embed_out.weight")


GPT_NEOX = Family(("gpt_neox",), read_gpt_neox_config, gpt_neox, "gpt_neox.")
