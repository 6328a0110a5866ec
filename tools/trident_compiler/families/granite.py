"""Granite and HyperCLOVA X: Llama, with factors on embeddings, scores, branches and logits.

Granite with sliding windows (granite_swa) has sinks, and its layers may rotate by different bases, or not at all.

Owns what config.json means for them. Never touches a compiler, a file or a number format.
"""

from __future__ import annotations

from trident_compiler.checkpoint.json_config import JsonConfig
from trident_compiler.checkpoint.rope import read_rotary
from trident_compiler.families.decoder_config import (
    LayerKind,
    Sizes,
    read_activation,
    read_sizes,
    read_windows,
    refuse_set,
)
from trident_compiler.families.family import Family
from trident_compiler.families.features import Feature
from trident_compiler.families.parts import Norm
from trident_compiler.families.sequential import LayerNorms, SequentialConfig, sequential

_POST_NORMS = LayerNorms(after_attention="post_norm1", after_mlp="post_norm2")


def read_granite_config(config: JsonConfig) -> SequentialConfig:
    """Understand the config.json of a member.

    Raises:
        CheckpointError: names the key that is missing, malformed or unsupported, with its value.
    """
    model_type = config.values["model_type"]
    is_granite, has_windows = model_type != "hyperclovax", model_type == "granite_swa"
    if has_windows:
        sizes = read_sizes(config, positions=8192, kv_heads=4, tied=True)
        layers = _layers(config, sizes)
    else:
        sizes = read_sizes(config, positions=2048)
        layers = (LayerKind(None, read_rotary(config, sizes.head_dim, sizes.max_position_embeddings)),)
    bias = config.flag("attention_bias")
    scaling = config.number("logits_scaling", 1.0)
    has_post_norms = not is_granite and config.flag("use_post_norm", default=True)
    return SequentialConfig(
        **sizes.fields(*layers),
        norm=Norm(config.number("rms_norm_eps", 1e-5 if has_windows else 1e-6)),
        activation=read_activation(config, "hidden_act", "silu"),
        layer_norms=_POST_NORMS if has_post_norms else LayerNorms(),
        qkv_bias=bias,
        output_bias=bias,
        mlp_bias=config.flag("mlp_bias"),
        has_sinks=has_windows,
        attention_scale=config.number("attention_multiplier", 1.0 if is_granite else sizes.head_dim**-0.5),
        embedding_factor=config.number("embedding_multiplier", 1.0),
        residual_factor=config.number("residual_multiplier", 1.0),
        logits_factor=1 / scaling if is_granite else scaling,
    )


def _layers(config: JsonConfig, sizes: Sizes) -> tuple[LayerKind, ...]:
    """Every fourth layer, from the first on, attends to all; `layer_rope_theta` has each layer's base, 0 for none."""
    count, head_dim, positions = sizes.num_layers, sizes.head_dim, sizes.max_position_embeddings
    kinds = tuple("sliding_attention" if layer % 4 else "full_attention" for layer in range(count))
    windows = read_windows(config, count, 128, kinds)
    bases = config.values.get("layer_rope_theta")
    if bases is None:
        return tuple(LayerKind(window, read_rotary(config, head_dim, positions)) for window in windows)
    if not isinstance(bases, list) or len(bases) != count:
        raise config.refuse("layer_rope_theta", f"must have the base of each of the {count} layers")
    scaling = config.section("rope_parameters") or JsonConfig({}, config.where)
    refuse_set(config, "rope_scaling")
    layers = []
    for window, base in zip(windows, bases, strict=True):
        own = {**config.values, "rope_parameters": {**scaling.values, "rope_theta": base}}
        rotary = None if base == 0 else read_rotary(JsonConfig(own, config.where), head_dim, positions)
        layers.append(LayerKind(window, rotary))
    return tuple(layers)


GRANITE = Family(("granite", "hyperclovax"), read_granite_config, sequential)
GRANITE_SWA = Family(("granite_swa",), read_granite_config, sequential, features=(Feature.SINKS,))
