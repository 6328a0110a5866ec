"""SmolLM3: Llama, with layers that do not rotate queries and keys.

Owns what config.json means for it. Never touches a compiler, a file or a number format.
"""

from __future__ import annotations

from trident_compiler.checkpoint.json_config import JsonConfig
from trident_compiler.checkpoint.rope import read_rotary
from trident_compiler.families.decoder_config import LayerKind, read_activation, read_sizes, read_windows
from trident_compiler.families.family import Family
from trident_compiler.families.parts import Norm
from trident_compiler.families.sequential import SequentialConfig, sequential


def read_smollm3_config(config: JsonConfig) -> SequentialConfig:
    """Understand the config.json of SmolLM3.

    Raises:
        CheckpointError: names the key that is missing, malformed or unsupported, with its value.
    """
    sizes = read_sizes(config, positions=32768, kv_heads=4, tied=True)
    rotary = read_rotary(config, sizes.head_dim, sizes.max_position_embeddings, theta=2000000.0)
    rotates = _rotating_layers(config, sizes.num_layers)
    windows: tuple[int | None, ...] = (None,) * sizes.num_layers
    if config.flag("use_sliding_window") and config.values.get("sliding_window") is not None:
        kinds = tuple("full_attention" if each else "sliding_attention" for each in rotates)
        windows = read_windows(config, sizes.num_layers, None, kinds)
    layers = (LayerKind(window, rotary if each else None) for window, each in zip(windows, rotates, strict=True))
    bias = config.flag("attention_bias")
    return SequentialConfig(
        **sizes.fields(*layers),
        norm=Norm(config.number("rms_norm_eps", 1e-6)),
        activation=read_activation(config, "hidden_act", "silu"),
        qkv_bias=bias,
        output_bias=bias,
        mlp_bias=config.flag("mlp_bias"),
    )


def _rotating_layers(config: JsonConfig, num_layers: int) -> tuple[bool, ...]:
    """The list `no_rope_layers` has 1 where a layer rotates, despite its name; without it every fourth does not."""
    flags = config.values.get("no_rope_layers")
    if flags is None:
        interval = config.integer("no_rope_layer_interval", 4)
        return tuple(bool(layer % interval) for layer in range(1, num_layers + 1))
    if not isinstance(flags, list) or len(flags) < num_layers or any(flag not in (0, 1) for flag in flags):
        raise config.refuse("no_rope_layers", f"must have 0 or 1 for each of the {num_layers} layers")
    return tuple(bool(flag) for flag in flags[:num_layers])


SMOLLM3 = Family(("smollm3",), read_smollm3_config, sequential)
