"""HunYuan (dense): Llama, with a norm of each head after the rotation, and a base that is stretched by `alpha`.

Owns what config.json means for it. Never touches a compiler, a file or a number format.
"""

from __future__ import annotations

from trident_compiler.checkpoint.json_config import JsonConfig
from trident_compiler.checkpoint.rope import Rotary, read_rotary
from trident_compiler.families.decoder_config import LayerKind, Sizes, read_activation, read_sizes
from trident_compiler.families.family import Family
from trident_compiler.families.parts import Norm
from trident_compiler.families.sequential import HeadNorms, SequentialConfig, sequential


def read_hunyuan_config(config: JsonConfig) -> SequentialConfig:
    """Understand the config.json of HunYuan.

    Raises:
        CheckpointError: names the key that is missing, malformed or unsupported, with its value.
    """
    sizes = read_sizes(config, positions=2048)
    bias = config.flag("attention_bias")
    return SequentialConfig(
        **sizes.fields(LayerKind(None, _rotary(config, sizes))),
        norm=Norm(config.number("rms_norm_eps", 1e-5)),
        activation=read_activation(config, "hidden_act", "silu"),
        head_norms=HeadNorms(query="query_layernorm", key="key_layernorm", after_rotary=True),
        qkv_bias=bias,
        output_bias=bias,
    )


def _rotary(config: JsonConfig, sizes: Sizes) -> Rotary:
    """Checkpoints say dynamic; with an `alpha` the frequencies do not depend on the sequence."""
    head_dim, positions = sizes.head_dim, sizes.max_position_embeddings
    scaling = config.section("rope_scaling") or config.section("rope_parameters") or JsonConfig({}, config.where)
    kind = scaling.values.get("rope_type") or scaling.values.get("type")
    if kind != "dynamic" or not scaling.values.get("alpha") or head_dim < 4:
        return read_rotary(config, head_dim, positions)
    theta = scaling.number("rope_theta", config.number("rope_theta", 10000.0))
    stretched = theta * scaling.number("alpha") ** (head_dim / (head_dim - 2))
    plain = {**config.values, "rope_scaling": None, "rope_parameters": {"rope_theta": stretched}}
    return read_rotary(JsonConfig(plain, config.where), head_dim, positions)


HUNYUAN = Family(("hunyuan_v1_dense",), read_hunyuan_config, sequential)
