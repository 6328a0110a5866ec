"""OLMo, OLMo 2 and OLMo 3.

OLMo has norms without a scale. From OLMo 2 on norms come after each branch, and those of queries and keys span all
heads; OLMo 3 adds windows.

Owns what config.json means for them. Never touches a compiler, a file or a number format.
"""

from __future__ import annotations

from trident_compiler.checkpoint.json_config import JsonConfig
from trident_compiler.checkpoint.rope import read_rotary
from trident_compiler.families.decoder_config import (
    LayerKind,
    every,
    read_activation,
    read_sizes,
    read_windows,
    refuse_set,
)
from trident_compiler.families.family import Family
from trident_compiler.families.parts import Norm
from trident_compiler.families.sequential import HeadNorms, HeadScale, LayerNorms, SequentialConfig, sequential

_AFTER = LayerNorms(None, "post_attention_layernorm", None, "post_feedforward_layernorm")
_THETA = 500000.0


def read_olmo_config(config: JsonConfig) -> SequentialConfig:
    """Understand the config.json of a member.

    Raises:
        CheckpointError: names the key that is missing, malformed or unsupported, with its value.
    """
    model_type = config.values["model_type"]
    sizes = read_sizes(config, positions=2048)
    head_dim, positions = sizes.head_dim, sizes.max_position_embeddings
    if model_type == "olmo3":
        windows = read_windows(config, sizes.num_layers, 4096, every(4, sizes.num_layers))
        sliding, full = (
            read_rotary(config, head_dim, positions, section=kind, theta=_THETA)
            for kind in ("sliding_attention", "full_attention")
        )
        layers = tuple(LayerKind(window, full if window is None else sliding) for window in windows)
    else:
        layers = (LayerKind(None, read_rotary(config, head_dim, positions)),)
    bias = config.flag("attention_bias")
    activation = read_activation(config, "hidden_act", "silu")
    if model_type == "olmo":
        clip = None if config.values.get("clip_qkv") is None else config.number("clip_qkv")
        return SequentialConfig(
            **sizes.fields(*layers),
            norm=Norm(1e-5, is_rms=False, has_scale=False),
            activation=activation,
            qkv_bias=bias,
            output_bias=bias,
            qkv_clip=clip,
        )
    refuse_set(config, "clip_qkv")
    return SequentialConfig(
        **sizes.fields(*layers),
        norm=Norm(config.number("rms_norm_eps", 1e-5)),
        activation=activation,
        layer_norms=_AFTER,
        head_norms=HeadNorms(HeadScale.ACROSS),
        qkv_bias=bias,
        output_bias=bias,
    )


OLMO = Family(("olmo", "olmo2", "olmo3"), read_olmo_config, sequential)
