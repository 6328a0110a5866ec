"""The Llama family: Llama 2 and 3, Mistral, Qwen2, Qwen3.

Owns what config.json means for its members, the names of their tensors and the structure of the network. Refuses what
the network would not compute as the checkpoint's authors do. Never touches a compiler, a file or a number format.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from trident_compiler.checkpoint.json_config import JsonConfig
from trident_compiler.checkpoint.rope import inverse_frequencies
from trident_compiler.families.ops import Ops, Value, Weights
from trident_compiler.weights.roles import Role

#: Model type -> transformers' default of max_position_embeddings.
_MAX_POSITIONS = {"llama": 2048, "mistral": 131072, "qwen2": 32768, "qwen3": 32768}
LLAMA_TYPES = tuple(_MAX_POSITIONS)
_MAX_LAYERS = 1024
_UNSUPPORTED = ("num_experts", "num_local_experts", "layer_norm_eps", "multi_query")
_EMBEDDINGS, _HEAD = "model.embed_tokens.weight", "lm_head.weight"
#: A buffer of old checkpoints that follows from the configuration.
_FREQUENCIES = ".rotary_emb.inv_freq"
#: Widths that are reduced stay multiples of this, as kernels and quantized rows like them.
_MULTIPLE = 64


@dataclass(frozen=True)
class LlamaConfig:
    """A decoder of the Llama family.

    Args:
        qkv_bias: queries, keys and values are projected with a bias.
        output_bias: attention's output is projected with a bias.
        qk_norm: each query and key head is normalised.
        sliding_windows: for each layer the tokens that attention sees, None for all.
        inverse_frequencies: rotary embedding, float32 `[head_dim / 2]`, scaling applied.
    """

    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    max_position_embeddings: int
    rms_norm_eps: float
    tie_word_embeddings: bool
    qkv_bias: bool
    output_bias: bool
    qk_norm: bool
    sliding_windows: tuple[int | None, ...]
    inverse_frequencies: npt.NDArray[np.float32] = field(repr=False, compare=False)

    def reduced(self, *, num_layers: int, vocab_size: int, factor: int) -> LlamaConfig:
        """Return a smaller model of the same kind of layers, as `DecoderConfig.reduced` says."""
        shorter = replace(
            self,
            vocab_size=min(vocab_size, self.vocab_size),
            sliding_windows=self.sliding_windows[:num_layers],
        )
        if factor == 1:
            return shorter
        num_kv_heads = max(1, self.num_kv_heads // factor)
        group = self.num_heads // self.num_kv_heads
        return replace(
            shorter,
            hidden_size=_cut(self.hidden_size, factor),
            intermediate_size=_cut(self.intermediate_size, factor),
            num_kv_heads=num_kv_heads,
            num_heads=num_kv_heads * max(1, min(group, self.num_heads // factor // num_kv_heads)),
        )


def _cut(size: int, factor: int) -> int:
    return max(_MULTIPLE, size // factor // _MULTIPLE * _MULTIPLE)


def read_llama_config(config: JsonConfig) -> LlamaConfig:
    """Understand the config.json of a member.

    Raises:
        CheckpointError: names the key that is missing, malformed or unsupported, with its value.
    """
    model_type = config.values["model_type"]
    for key in _UNSUPPORTED:
        if config.values.get(key) is not None:
            raise config.refuse(key, "not supported")
    if config.values.get("hidden_act", "silu") != "silu":
        raise config.refuse("hidden_act", "not supported; silu is")
    if config.flag("mlp_bias"):
        raise config.refuse("mlp_bias", "a bias in the feed-forward is not supported")

    num_layers = config.integer("num_hidden_layers")
    if num_layers > _MAX_LAYERS:
        raise config.refuse("num_hidden_layers", f"more than {_MAX_LAYERS} layers")
    hidden_size = config.integer("hidden_size")
    num_heads = config.integer("num_attention_heads")
    num_kv_heads = config.integer("num_key_value_heads", 8 if model_type == "mistral" else num_heads)
    head_dim = config.integer("head_dim", 128 if model_type == "qwen3" else max(1, hidden_size // num_heads))
    max_positions = config.integer("max_position_embeddings", _MAX_POSITIONS[model_type])
    if num_heads % num_kv_heads:
        raise config.refuse("num_key_value_heads", f"does not divide num_attention_heads = {num_heads}")
    if head_dim % 2:
        raise config.refuse("head_dim", f"rotary embedding needs an even head size, not {head_dim}")
    has_bias = config.flag("attention_bias")
    return LlamaConfig(
        hidden_size=hidden_size,
        intermediate_size=config.integer("intermediate_size"),
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        vocab_size=config.integer("vocab_size"),
        max_position_embeddings=max_positions,
        rms_norm_eps=config.number("rms_norm_eps", 1e-6),
        tie_word_embeddings=config.flag("tie_word_embeddings"),
        qkv_bias=has_bias or model_type == "qwen2",
        output_bias=has_bias and model_type in {"llama", "qwen3"},
        qk_norm=model_type == "qwen3",
        sliding_windows=_sliding_windows(config, model_type, num_layers),
        inverse_frequencies=inverse_frequencies(config, head_dim, max_positions),
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
    kinds = config.values.get("layer_types")
    if kinds is None:
        first = config.integer("max_window_layers", 28, least=0)
        return tuple(window if layer >= first else None for layer in range(num_layers))
    if not isinstance(kinds, list) or len(kinds) != num_layers:
        raise config.refuse("layer_types", f"must name the kind of each of the {num_layers} layers")
    for kind in kinds:
        if kind not in {"full_attention", "sliding_attention"}:
            raise config.refuse("layer_types", f"{kind!r} is not supported; full_attention and sliding_attention are")
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)


def llama(net: Ops[Value], config: LlamaConfig, weights: Weights) -> Value:
    """Write the whole network, or one device's share of it; return the logits, `[R, vocab]`.

    Pre-norm decoder layers of grouped-query attention with rotary positions and a SwiGLU feed-forward; the members
    differ in biases, in norms on queries and keys, and in the sliding window.

    Raises:
        CheckpointError: a tensor is missing or has another shape than the configuration says.
    """
    hidden_size, head_dim = config.hidden_size, config.head_dim
    query_size, key_size = config.num_heads * head_dim, config.num_kv_heads * head_dim
    num_heads = config.num_heads // weights.num_devices
    num_kv_heads = config.num_kv_heads // weights.num_devices
    weights.skip(_FREQUENCIES)

    def column_parallel(x: Value, name: str, out_size: int, *, bias: bool = False) -> Value:
        weight = weights.matrix(f"{name}.weight", out_size, hidden_size, Role.COLUMN)
        return net.linear(x, weight, weights.vector(f"{name}.bias", out_size, Role.COLUMN_BIAS) if bias else None)

    def row_parallel(x: Value, name: str, in_size: int, *, bias: bool = False) -> Value:
        weight = weights.matrix(f"{name}.weight", hidden_size, in_size, Role.ROW)
        return net.linear(x, weight, weights.vector(f"{name}.bias", hidden_size) if bias else None, all_reduce=True)

    def norm(x: Value, name: str, size: int = hidden_size) -> Value:
        return net.rms_norm(x, weights.vector(f"{name}.weight", size), config.rms_norm_eps)

    def rotary_heads(x: Value, num_heads: int, norm_name: str) -> Value:
        x = net.split_heads(x, num_heads)
        if config.qk_norm:
            x = norm(x, norm_name, head_dim)
        return net.apply_rope(x, config.inverse_frequencies)

    hidden = net.embedding(weights.embedding(_EMBEDDINGS, config.vocab_size, hidden_size))
    for layer, sliding_window in enumerate(config.sliding_windows):
        prefix = f"model.layers.{layer}"

        normed = norm(hidden, f"{prefix}.input_layernorm")
        query = column_parallel(normed, f"{prefix}.self_attn.q_proj", query_size, bias=config.qkv_bias)
        key = column_parallel(normed, f"{prefix}.self_attn.k_proj", key_size, bias=config.qkv_bias)
        value = column_parallel(normed, f"{prefix}.self_attn.v_proj", key_size, bias=config.qkv_bias)
        attention = net.attention(
            layer,
            rotary_heads(query, num_heads, f"{prefix}.self_attn.q_norm"),
            rotary_heads(key, num_kv_heads, f"{prefix}.self_attn.k_norm"),
            net.split_heads(value, num_kv_heads),
            scale=head_dim**-0.5,
            sliding_window=sliding_window,
        )
        output = row_parallel(attention, f"{prefix}.self_attn.o_proj", query_size, bias=config.output_bias)
        hidden = net.add(hidden, output)

        normed = norm(hidden, f"{prefix}.post_attention_layernorm")
        gate = column_parallel(normed, f"{prefix}.mlp.gate_proj", config.intermediate_size)
        up = column_parallel(normed, f"{prefix}.mlp.up_proj", config.intermediate_size)
        gated = net.multiply(net.silu(gate), up)
        hidden = net.add(hidden, row_parallel(gated, f"{prefix}.mlp.down_proj", config.intermediate_size))

    hidden = norm(net.select_rows(hidden), "model.norm")
    if config.tie_word_embeddings:
        weights.skip(_HEAD)
    head = _EMBEDDINGS if config.tie_word_embeddings else _HEAD
    return net.all_gather(net.linear(hidden, weights.head(head, config.vocab_size, hidden_size)))
