"""Jais 2: Llama, with LayerNorm, biases, and a feed-forward without a gate.

Owns what config.json means for it. Never touches a compiler, a file or a number format.
"""

from __future__ import annotations

from trident_compiler.checkpoint.json_config import JsonConfig
from trident_compiler.checkpoint.rope import read_rotary
from trident_compiler.families.decoder_config import LayerKind, read_activation, read_sizes
from trident_compiler.families.family import Family
from trident_compiler.families.parts import Norm
from trident_compiler.families.sequential import SequentialConfig, sequential


def read_jais2_config(config: JsonConfig) -> SequentialConfig:
    """Understand the config.json of Jais 2.

    Raises:
        CheckpointError: names the key that is missing, malformed or unsupported, with its value.
    """
    sizes = read_sizes(config, positions=8192)
    rotary = read_rotary(config, sizes.head_dim, sizes.max_position_embeddings)
    bias = config.flag("attention_bias", default=True)
    return SequentialConfig(
        **sizes.fields(LayerKind(None, rotary)),
        norm=Norm(config.number("layer_norm_eps", 1e-5), is_rms=False, has_bias=True),
        activation=read_activation(config, "hidden_act", "relu2"),
        qkv_bias=bias,
        output_bias=bias,
        mlp_bias=config.flag("mlp_bias", default=True),
        is_gated=False,
    )


JAIS2 = Family(("jais2",), read_jais2_config, sequential)
