"""Gemma, Gemma 2, Gemma 3 (text) and VaultGemma.

Norms store how much their scale differs from 1. From Gemma 2 on some layers have windows; Gemma 3 normalises heads, and
its layers with a window rotate by another base. Gemma 2 bounds scores and logits.

Owns what config.json means for them. Never touches a compiler, a file or a number format.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from trident_compiler.checkpoint.json_config import JsonConfig
from trident_compiler.checkpoint.rope import read_rotary
from trident_compiler.families.decoder_config import (
    LayerKind,
    Sizes,
    every,
    read_activation,
    read_sizes,
    read_windows,
    refuse_set,
)
from trident_compiler.families.family import Family
from trident_compiler.families.features import Feature
from trident_compiler.families.parts import Norm
from trident_compiler.families.sequential import HeadNorms, LayerNorms, SequentialConfig, sequential
from trident_compiler.families.words import Activation
from trident_compiler.weights.quantization import to_bfloat16, to_float32

_AROUND = LayerNorms(
    "input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm"
)


@dataclass(frozen=True)
class _Member:
    """What transformers takes for one model type where config.json does not say.

    Args:
        layer_norms: where norms stand.
        positions: the longest context.
        kv_heads: heads of keys and values.
        period: every layer at a multiple of it attends to all; 1 is all layers.
        score_cap: bound on scores; the member has none if it is None.
        logits_cap: bound on logits.
        activation: the key of the feed-forward's activation.
    """

    layer_norms: LayerNorms
    positions: int = 8192
    kv_heads: int = 4
    period: int = 2
    score_cap: float | None = None
    logits_cap: float | None = None
    activation: str = "hidden_activation"


_MEMBERS = {
    "gemma": _Member(LayerNorms(), kv_heads=16, period=1, activation="hidden_act"),
    "gemma2": _Member(_AROUND, score_cap=50.0, logits_cap=30.0),
    "gemma3_text": _Member(_AROUND, 131072, period=6),
    "vaultgemma": _Member(LayerNorms(before_mlp="pre_feedforward_layernorm"), score_cap=50.0, logits_cap=30.0),
}


def read_gemma_config(config: JsonConfig) -> SequentialConfig:
    """Understand the config.json of a member.

    Raises:
        CheckpointError: names the key that is missing, malformed or unsupported, with its value.
    """
    model_type = config.values["model_type"]
    member = _MEMBERS[model_type]
    refuse_set(config, "use_bidirectional_attention")
    if member.score_cap is None:
        refuse_set(config, "attn_logit_softcapping")
    sizes = read_sizes(config, positions=member.positions, kv_heads=member.kv_heads, head_dim=256, tied=True)
    is_first, is_third = model_type == "gemma", model_type == "gemma3_text"
    bias = config.flag("attention_bias")
    return SequentialConfig(
        **sizes.fields(*_layers(config, sizes, member, has_bases=is_third)),
        norm=Norm(config.number("rms_norm_eps", 1e-6), plus=1.0),
        activation=_activation(config, member.activation, is_first=is_first),
        layer_norms=member.layer_norms,
        head_norms=HeadNorms() if is_third else None,
        qkv_bias=bias,
        output_bias=bias,
        attention_scale=None if is_first else config.number("query_pre_attn_scalar", 256.0) ** -0.5,
        attention_cap=_cap(config, "attn_logit_softcapping", member.score_cap),
        embedding_factor=_rounded(config, sizes.hidden_size**0.5),
        logits_cap=None if is_first else _cap(config, "final_logit_softcapping", member.logits_cap),
    )


def _layers(config: JsonConfig, sizes: Sizes, member: _Member, *, has_bases: bool) -> tuple[LayerKind, ...]:
    head_dim, positions = sizes.head_dim, sizes.max_position_embeddings
    if not has_bases:
        full = sliding = read_rotary(config, head_dim, positions)
    else:
        full = read_rotary(config, head_dim, positions, section="full_attention", theta=1000000.0)
        sliding = read_rotary(
            config,
            head_dim,
            positions,
            section="sliding_attention",
            theta_key="rope_local_base_freq",
        )
    if member.period == 1:
        return (LayerKind(None, full),)
    period = config.integer("sliding_window_pattern", member.period) if has_bases else member.period
    windows = read_windows(config, sizes.num_layers, 4096, every(period, sizes.num_layers))
    return tuple(LayerKind(window, full if window is None else sliding) for window in windows)


def _activation(config: JsonConfig, key: str, *, is_first: bool) -> Activation:
    """The first releases say gelu and mean its approximation by tanh."""
    found = read_activation(config, key, "gelu_pytorch_tanh")
    return Activation.GELU_TANH if is_first and found is Activation.GELU else found


def _cap(config: JsonConfig, key: str, default: float | None) -> float | None:
    """A bound; null is none, and so is an absent key without a default."""
    value = config.values.get(key, default)
    return None if value is None else config.number(key, default)


def _rounded(config: JsonConfig, factor: float) -> float:
    """The factor in the number format of the checkpoint, in which transformers multiplies by it."""
    name = config.values.get("dtype") or config.values.get("torch_dtype")
    if name == "bfloat16":
        return float(to_float32(to_bfloat16(np.array([factor], np.float32)))[0])
    return float(np.float16(factor)) if name == "float16" else factor


GEMMA = Family(("gemma", "gemma3_text"), read_gemma_config, sequential)
GEMMA2 = Family(("gemma2", "vaultgemma"), read_gemma_config, sequential, features=(Feature.SOFT_CAP,))
