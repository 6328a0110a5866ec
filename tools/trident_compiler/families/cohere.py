"""Cohere's Command R (cohere) and Command R7B (cohere2): attention and feed-forward of one norm, side by side.

Neighbours are rotated. Cohere 2 has windows, and its layers without one do not rotate.

Owns what config.json means for them, and how a layer joins its branches. Never touches a compiler or a file.
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
    refuse_other,
    refuse_set,
)
from trident_compiler.families.family import Family
from trident_compiler.families.ops import Ops, Value, Weights
from trident_compiler.families.parts import Norm, Parts
from trident_compiler.families.sequential import (
    HeadNorms,
    HeadScale,
    SequentialConfig,
    embedded,
    feed_forward,
    output,
    self_attention,
)

_MAX_POSITIONS = 8192
_THETAS = {"cohere": 500000.0, "cohere2": 10000.0}


def read_cohere_config(config: JsonConfig) -> SequentialConfig:
    """Understand the config.json of a member.

    Raises:
        CheckpointError: names the key that is missing, malformed or unsupported, with its value.
    """
    sizes = read_sizes(config, positions=_MAX_POSITIONS, tied=True)
    model_type = config.values["model_type"]
    rotary = read_rotary(config, sizes.head_dim, sizes.max_position_embeddings, theta=_THETAS[model_type])
    layers: tuple[LayerKind, ...] = (LayerKind(None, rotary),)
    if model_type == "cohere2":
        refuse_set(config, "use_qk_norm")
        refuse_other(config, {"head_dim": sizes.hidden_size // sizes.num_heads})
        default: tuple[str, ...] = ()
        if config.values.get("layer_types") is None:
            default = every(config.integer("sliding_window_pattern", 4), sizes.num_layers)
        windows = read_windows(config, sizes.num_layers, 4096, default)
        layers = tuple(LayerKind(window, None if window is None else rotary) for window in windows)
    bias = config.flag("attention_bias")
    return SequentialConfig(
        **sizes.fields(*layers),
        norm=Norm(config.number("layer_norm_eps", 1e-5), is_rms=False),
        activation=read_activation(config, "hidden_act", "silu"),
        head_norms=HeadNorms(HeadScale.OWN) if config.flag("use_qk_norm") else None,
        qkv_bias=bias,
        output_bias=bias,
        is_paired=True,
        logits_factor=config.number("logit_scale", 0.0625),
    )


def cohere(net: Ops[Value], config: SequentialConfig, weights: Weights) -> Value:
    """Write the whole network, or one device's share of it; return the logits, `[R, vocab]`."""
    parts = Parts(net, weights, config, config.norm)
    hidden = embedded(parts, config)
    for layer in range(config.num_layers):
        normed = parts.norm(hidden, f"model.layers.{layer}.input_layernorm")
        attended = self_attention(parts, config, layer, normed)
        hidden = net.add(net.add(hidden, attended), feed_forward(parts, config, layer, normed))
    return output(parts, config, hidden)


COHERE = Family(("cohere", "cohere2"), read_cohere_config, cohere)
