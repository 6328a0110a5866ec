"""Granite and HyperCLOVA X: Llama, with factors on embeddings, scores, branches and logits."""

from __future__ import annotations

from trident_compiler.checkpoint.json_config import JsonConfig
from trident_compiler.checkpoint.rope import read_rotary
from trident_compiler.families.decoder_config import LayerKind, read_activation, read_sizes
from trident_compiler.families.family import Family
from trident_compiler.families.parts import Norm
from trident_compiler.families.sequential import LayerNorms, SequentialConfig, sequential

_POST_NORMS = LayerNorms(after_attention="post_norm1", after_mlp="post_norm2")


def read_granite_config(config: JsonConfig) -> SequentialConfig:
    """Understand the config.json of a member.

    Raises:
        CheckpointError: names the key that is missing, malformed or unsupported, with its value.
    """
    is_granite = config.values["model_type"] == "granite"
    sizes = read_sizes(config, positions=2048)
    rotary = read_rotary(config, sizes.head_dim, sizes.max_position_embeddings)
    bias = config.flag("attention_bias")
    scaling = config.number("logits_scaling", 1.0)
    has_post_norms = not is_granite and config.flag("use_post_norm", default=True)
    return SequentialConfig(
        **sizes.fields(LayerKind(None, rotary)),
        norm=Norm(config.number("rms_norm_eps", 1e-6)),
        activation=read_activation(config, "hidden_act", "silu"),
        layer_norms=_POST_NORMS if has_post_norms else LayerNorms(),
        qkv_bias=bias,
        output_bias=bias,
        mlp_bias=config.flag("mlp_bias"),
        attention_scale=config.number("attention_multiplier", 1.0 if is_granite else sizes.head_dim**-0.5),
        embedding_factor=config.number("embedding_multiplier", 1.0),
        residual_factor=config.number("residual_multiplier", 1.0),
        logits_factor=1 / scaling if is_granite else scaling,
    )


GRANITE = Family(("granite", "hyperclovax"), read_granite_config, sequential)
