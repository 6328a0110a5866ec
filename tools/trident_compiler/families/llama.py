"""The Llama family: Llama 2 and 3, Mistral, Qwen2, Qwen3, and others that differ from them by a row of a table.

Owns what config.json means for its members. Refuses what the network would not compute as the checkpoint's authors do.
Never touches a compiler, a file or a number format.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from trident_compiler.checkpoint.json_config import JsonConfig
from trident_compiler.checkpoint.rope import read_rotary
from trident_compiler.families.decoder_config import (
    LayerKind,
    read_activation,
    read_sizes,
    read_windows,
    refuse_set,
)
from trident_compiler.families.family import Family
from trident_compiler.families.parts import Norm
from trident_compiler.families.sequential import HeadNorms, SequentialConfig, sequential

Windows = tuple[int | None, ...]
#: A key of config.json and its default, or the value that a member always has.
Flag = tuple[str, bool] | bool
_ATTENTION_BIAS, _MLP_BIAS = ("attention_bias", False), ("mlp_bias", False)


def _no_windows(config: JsonConfig, num_layers: int) -> Windows:
    refuse_set(config, "use_sliding_window")
    return (None,) * num_layers


def _one_window(config: JsonConfig, num_layers: int) -> Windows:
    """One for all layers, even when the key is absent."""
    present = config.values.get("sliding_window", 4096) is not None
    return (config.integer("sliding_window", 4096) if present else None,) * num_layers


def _windows_by_type(config: JsonConfig, num_layers: int) -> Windows:
    """All layers, unless config.json names the kind of each."""
    present = config.values.get("sliding_window", 4096) is not None
    kind = "sliding_attention" if present else "full_attention"
    return read_windows(config, num_layers, 4096, (kind,) * num_layers)


def _last_windows(config: JsonConfig, num_layers: int) -> Windows:
    """Layers from `max_window_layers` on, if `use_sliding_window` says so."""
    present = config.values.get("sliding_window", 4096) is not None
    if not present or not config.flag("use_sliding_window"):
        return (None,) * num_layers
    first = config.integer("max_window_layers", 28, least=0)
    kinds = tuple("sliding_attention" if layer >= first else "full_attention" for layer in range(num_layers))
    return read_windows(config, num_layers, 4096, kinds)


@dataclass(frozen=True)
class _Member:
    """What transformers takes for one model type where config.json does not say.

    Args:
        positions: the longest context.
        kv_heads: heads of keys and values; None is one for each query head.
        head_dim: size of a head; None is hidden size by heads.
        epsilon: of the norms.
        theta: base of the rotary embedding.
        tied: the output projection is the table of embeddings.
        activation: of the feed-forward.
        is_gated: it has a gate.
        qkv_bias: queries, keys and values are projected with a bias.
        output_bias: so is attention's output.
        mlp_bias: so are the feed-forward's layers.
        qk_norm: each query and key head is normalised.
        is_paired: neighbouring features are rotated against each other.
        windows: the window of each layer.
    """

    positions: int
    kv_heads: int | None = None
    head_dim: int | None = None
    epsilon: float = 1e-6
    theta: float = 10000.0
    tied: bool = False
    activation: str = "silu"
    is_gated: bool = True
    qkv_bias: Flag = _ATTENTION_BIAS
    output_bias: Flag = _ATTENTION_BIAS
    mlp_bias: Flag = _MLP_BIAS
    qk_norm: bool = False
    is_paired: bool = False
    windows: Callable[[JsonConfig, int], Windows] = _no_windows


_USE_BIAS = ("use_bias", False)
_MEMBERS = {
    "arcee": _Member(4096, epsilon=1e-5, activation="relu2", is_gated=False),
    "ernie4_5": _Member(
        131072, 2, 128, 1e-5, 500000.0, True,
        qkv_bias=_USE_BIAS, output_bias=_USE_BIAS, mlp_bias=_USE_BIAS, is_paired=True,
    ),
    "helium": _Member(4096, 20, 128, 1e-8, 100000.0, output_bias=False, is_paired=True),
    "internlm3": _Member(32768, 2, 128, 1e-5),
    "iquestcoder": _Member(131072, 8, 128, 1e-5),
    "llama": _Member(2048),
    "ministral": _Member(
        131072, 8, qkv_bias=False, output_bias=False, mlp_bias=False, windows=_windows_by_type
    ),
    "mistral": _Member(131072, 8, qkv_bias=False, output_bias=False, mlp_bias=False, windows=_one_window),
    "qwen2": _Member(32768, qkv_bias=True, output_bias=False, mlp_bias=False, windows=_last_windows),
    "qwen3": _Member(32768, None, 128, mlp_bias=False, qk_norm=True, windows=_last_windows),
    "seed_oss": _Member(
        524288, 8, 128, qkv_bias=("attention_bias", True), output_bias=("attention_out_bias", False)
    ),
}  # fmt: skip


def read_llama_config(config: JsonConfig) -> SequentialConfig:
    """Understand the config.json of a member.

    Raises:
        CheckpointError: names the key that is missing, malformed or unsupported, with its value.
    """
    member = _MEMBERS[config.values["model_type"]]
    refuse_set(
        config, "num_experts", "num_local_experts", "layer_norm_eps", "multi_query", "clip_qkv", "qkv_bias", "bias"
    )
    sizes = read_sizes(
        config,
        positions=member.positions,
        kv_heads=member.kv_heads,
        head_dim=member.head_dim,
        tied=member.tied,
    )
    rotary = read_rotary(config, sizes.head_dim, sizes.max_position_embeddings, theta=member.theta)
    windows = member.windows(config, sizes.num_layers)
    return SequentialConfig(
        **sizes.fields(*(LayerKind(window, rotary) for window in windows)),
        norm=Norm(config.number("rms_norm_eps", member.epsilon)),
        activation=read_activation(config, "hidden_act", member.activation),
        head_norms=HeadNorms() if member.qk_norm else None,
        qkv_bias=_flag(config, member.qkv_bias),
        output_bias=_flag(config, member.output_bias),
        mlp_bias=_flag(config, member.mlp_bias),
        is_gated=member.is_gated,
        is_paired=member.is_paired,
    )


def _flag(config: JsonConfig, flag: Flag) -> bool:
    return flag if isinstance(flag, bool) else config.flag(flag[0], default=flag[1])


LLAMA = Family(tuple(_MEMBERS), read_llama_config, sequential)
