"""The Llama family: Llama 2 and 3, Mistral, Qwen2, Qwen3.

Owns what config.json means for its members, the names of their tensors and the structure of the network. Refuses what
the network would not compute as the checkpoint's authors do. Never touches a compiler, a file or a number format.
"""

from __future__ import annotations

from dataclasses import dataclass

from trident_compiler.checkpoint.json_config import JsonConfig
from trident_compiler.checkpoint.rope import read_rotary
from trident_compiler.families.decoder_config import (
    DecoderConfig,
    LayerKind,
    read_activation,
    read_layer_types,
    read_sizes,
    refuse_set,
)
from trident_compiler.families.family import Family
from trident_compiler.families.ops import Ops, Value, Weights
from trident_compiler.families.parts import Norm, Parts
from trident_compiler.families.words import Activation

#: Model type -> transformers' default of max_position_embeddings.
_MAX_POSITIONS = {"llama": 2048, "mistral": 131072, "qwen2": 32768, "qwen3": 32768}
_KV_HEADS = {"mistral": 8}
_HEAD_DIMS = {"qwen3": 128}
#: Members whose attention_bias is also that of attention's output.
_OUTPUT_BIAS = ("llama", "qwen3")
#: A buffer of old checkpoints that follows from the configuration.
_FREQUENCIES = ".rotary_emb.inv_freq"


@dataclass(frozen=True)
class LlamaConfig(DecoderConfig):
    """A decoder of the Llama family.

    Args:
        epsilon: of the norms.
        activation: of the feed-forward's gate.
        qkv_bias: queries, keys and values are projected with a bias.
        output_bias: attention's output is projected with a bias.
        mlp_bias: the feed-forward's layers have biases.
        qk_norm: each query and key head is normalised.
    """

    epsilon: float
    activation: Activation
    qkv_bias: bool
    output_bias: bool
    mlp_bias: bool
    qk_norm: bool


def read_llama_config(config: JsonConfig) -> LlamaConfig:
    """Understand the config.json of a member.

    Raises:
        CheckpointError: names the key that is missing, malformed or unsupported, with its value.
    """
    model_type = config.values["model_type"]
    refuse_set(config, "num_experts", "num_local_experts", "layer_norm_eps", "multi_query")
    sizes = read_sizes(
        config,
        positions=_MAX_POSITIONS[model_type],
        kv_heads=_KV_HEADS.get(model_type),
        head_dim=_HEAD_DIMS.get(model_type),
    )
    rotary = read_rotary(config, sizes.head_dim, sizes.max_position_embeddings)
    has_bias = config.flag("attention_bias")
    windows = _sliding_windows(config, model_type, sizes.num_layers)
    return LlamaConfig(
        **sizes.fields(*(LayerKind(window, rotary) for window in windows)),
        epsilon=config.number("rms_norm_eps", 1e-6),
        activation=read_activation(config, "hidden_act", "silu"),
        qkv_bias=has_bias or model_type == "qwen2",
        output_bias=has_bias and model_type in _OUTPUT_BIAS,
        mlp_bias=config.flag("mlp_bias"),
        qk_norm=model_type == "qwen3",
    )


def _sliding_windows(config: JsonConfig, model_type: str, num_layers: int) -> tuple[int | None, ...]:
    """Llama has none; Mistral one for all layers, even when the key is absent; Qwen's needs use_sliding_window."""
    present = config.values.get("sliding_window", 4096) is not None
    if model_type == "llama" or not present:
        return (None,) * num_layers
    window = config.integer("sliding_window", 4096)
    if model_type == "mistral":
        return (window,) * num_layers
    if not config.flag("use_sliding_window"):
        return (None,) * num_layers
    first = config.integer("max_window_layers", 28, least=0)
    default = tuple("sliding_attention" if layer >= first else "full_attention" for layer in range(num_layers))
    kinds = read_layer_types(config, num_layers, default)
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)


def llama(net: Ops[Value], config: LlamaConfig, weights: Weights) -> Value:
    """Write the whole network, or one device's share of it; return the logits, `[R, vocab]`.

    Pre-norm decoder layers of grouped-query attention with rotary positions and a gated feed-forward; the members
    differ in biases, in norms on queries and keys, and in the sliding window.

    Raises:
        CheckpointError: a tensor is missing or has another shape than the configuration says.
    """
    parts = Parts(net, weights, config, Norm(config.epsilon))
    weights.skip(_FREQUENCIES)
    hidden = parts.embedding("model.embed_tokens.weight")
    for layer in range(config.num_layers):
        prefix = f"model.layers.{layer}"
        attention, mlp = f"{prefix}.self_attn", f"{prefix}.mlp"

        normed = parts.norm(hidden, f"{prefix}.input_layernorm")
        query = parts.query_heads(parts.column(normed, f"{attention}.q_proj", parts.query_size, bias=config.qkv_bias))
        key = parts.kv_heads(parts.column(normed, f"{attention}.k_proj", parts.kv_size, bias=config.qkv_bias))
        value = parts.kv_heads(parts.column(normed, f"{attention}.v_proj", parts.kv_size, bias=config.qkv_bias))
        if config.qk_norm:
            query = parts.norm(query, f"{attention}.q_norm", config.head_dim)
            key = parts.norm(key, f"{attention}.k_norm", config.head_dim)
        attended = parts.attend(layer, parts.rotated(layer, query), parts.rotated(layer, key), value)
        output = parts.row(attended, f"{attention}.o_proj", parts.query_size, bias=config.output_bias)
        hidden = net.add(hidden, output)

        normed = parts.norm(hidden, f"{prefix}.post_attention_layernorm")
        names = (f"{mlp}.gate_proj", f"{mlp}.up_proj", f"{mlp}.down_proj")
        hidden = net.add(hidden, parts.gated(normed, *names, config.activation, bias=config.mlp_bias))
    hidden = parts.norm(net.select_rows(hidden), "model.norm")
    return parts.logits(hidden, "model.embed_tokens.weight", "lm_head.weight")


LLAMA = Family(("llama", "mistral", "qwen2", "qwen3"), read_llama_config, llama)
