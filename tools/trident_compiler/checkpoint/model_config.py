"""A checkpoint's architecture, read from config.json into one typed value.

Owns what each model type means by its keys and their defaults, and refuses what the network would not compute as the
checkpoint's authors do. Never reads tensors.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from trident_compiler.checkpoint.json_config import JsonConfig
from trident_compiler.checkpoint.rope import inverse_frequencies

#: Model type -> transformers' default of max_position_embeddings.
FAMILIES = {"llama": 2048, "mistral": 131072, "qwen2": 32768, "qwen3": 32768}
_MAX_LAYERS = 1024
_UNSUPPORTED = ("quantization_config", "num_experts", "num_local_experts", "layer_norm_eps", "multi_query")


@dataclass(frozen=True)
class ModelConfig:
    """A decoder of the Llama family.

    Args:
        family: `model_type` of config.json.
        qkv_bias: queries, keys and values are projected with a bias.
        output_bias: attention's output is projected with a bias.
        qk_norm: each query and key head is normalised.
        sliding_windows: for each layer the tokens that attention sees, None for all.
        inverse_frequencies: rotary embedding, float32 `[head_dim / 2]`, scaling applied.
    """

    family: str
    num_layers: int
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


def read_model_config(config: JsonConfig) -> ModelConfig:
    """Understand config.json.

    Raises:
        CheckpointError: names the key that is missing, malformed or unsupported, with its value.
    """
    family = config.values.get("model_type")
    if not isinstance(family, str) or family not in FAMILIES:
        raise config.refuse("model_type", f"not supported; {', '.join(FAMILIES)} are")
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
    num_kv_heads = config.integer("num_key_value_heads", 8 if family == "mistral" else num_heads)
    head_dim = config.integer("head_dim", 128 if family == "qwen3" else max(1, hidden_size // num_heads))
    max_positions = config.integer("max_position_embeddings", FAMILIES[family])
    if num_heads % num_kv_heads:
        raise config.refuse("num_key_value_heads", f"does not divide num_attention_heads = {num_heads}")
    if head_dim % 2:
        raise config.refuse("head_dim", f"rotary embedding needs an even head size, not {head_dim}")
    biased = config.flag("attention_bias")
    return ModelConfig(
        family=family,
        num_layers=num_layers,
        hidden_size=hidden_size,
        intermediate_size=config.integer("intermediate_size"),
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        vocab_size=config.integer("vocab_size"),
        max_position_embeddings=max_positions,
        rms_norm_eps=config.number("rms_norm_eps", 1e-6),
        tie_word_embeddings=config.flag("tie_word_embeddings"),
        qkv_bias=biased or family == "qwen2",
        output_bias=biased and family in {"llama", "qwen3"},
        qk_norm=family == "qwen3",
        sliding_windows=_sliding_windows(config, family, num_layers),
        inverse_frequencies=inverse_frequencies(config, head_dim, max_positions),
    )


def _sliding_windows(config: JsonConfig, family: str, num_layers: int) -> tuple[int | None, ...]:
    """Llama has none; Mistral one for all layers, even when the key is absent; Qwen's needs use_sliding_window."""
    present = config.values.get("sliding_window", 4096) is not None
    if family == "llama" or not present:
        return (None,) * num_layers
    window = config.integer("sliding_window", 4096)
    if family == "mistral":
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
