"""EXAONE 4: norms after each branch and of each head; where layers have windows, those without one do not rotate.

Owns what config.json means for it. Never touches a compiler, a file or a number format.
"""

from __future__ import annotations

from trident_compiler.checkpoint.json_config import JsonConfig
from trident_compiler.checkpoint.rope import read_rotary
from trident_compiler.families.decoder_config import LayerKind, every, read_activation, read_sizes, read_windows
from trident_compiler.families.family import Family
from trident_compiler.families.parts import Norm
from trident_compiler.families.sequential import HeadNorms, LayerNorms, SequentialConfig, sequential


def read_exaone4_config(config: JsonConfig) -> SequentialConfig:
    """Understand the config.json of EXAONE 4.

    Raises:
        CheckpointError: names the key that is missing, malformed or unsupported, with its value.
    """
    sizes = read_sizes(config, positions=2048)
    rotary = read_rotary(config, sizes.head_dim, sizes.max_position_embeddings)
    layers: tuple[LayerKind, ...] = (LayerKind(None, rotary),)
    if config.values.get("sliding_window", 4096) is not None:
        default: tuple[str, ...] = ()
        if config.values.get("layer_types") is None:
            default = every(config.integer("sliding_window_pattern", 4), sizes.num_layers)
        windows = read_windows(config, sizes.num_layers, 4096, default)
        layers = tuple(LayerKind(window, None if window is None else rotary) for window in windows)
    return SequentialConfig(
        **sizes.fields(*layers),
        norm=Norm(config.number("rms_norm_eps", 1e-5)),
        activation=read_activation(config, "hidden_act", "silu"),
        layer_norms=LayerNorms(None, "post_attention_layernorm", None, "post_feedforward_layernorm"),
        head_norms=HeadNorms(),
    )


EXAONE4 = Family(("exaone4",), read_exaone4_config, sequential)
