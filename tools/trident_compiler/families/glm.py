"""GLM and GLM-4: neighbours are rotated, in a part of each head; GLM-4 has norms before and after both branches.

Owns what config.json means for them. Never touches a compiler, a file or a number format.
"""

from __future__ import annotations

from trident_compiler.checkpoint.json_config import JsonConfig
from trident_compiler.checkpoint.rope import read_rotary
from trident_compiler.families.decoder_config import LayerKind, read_activation, read_sizes
from trident_compiler.families.family import Family
from trident_compiler.families.parts import Norm
from trident_compiler.families.sequential import LayerNorms, SequentialConfig, sequential

_NORMS = {
    "glm": LayerNorms(),
    "glm4": LayerNorms(after_attention="post_self_attn_layernorm", after_mlp="post_mlp_layernorm"),
}


def read_glm_config(config: JsonConfig) -> SequentialConfig:
    """Understand the config.json of a member.

    Raises:
        CheckpointError: names the key that is missing, malformed or unsupported, with its value.
    """
    sizes = read_sizes(config, positions=131072, kv_heads=2, head_dim=128)
    rotary = read_rotary(config, sizes.head_dim, sizes.max_position_embeddings, partial=0.5)
    return SequentialConfig(
        **sizes.fields(LayerKind(None, rotary)),
        norm=Norm(config.number("rms_norm_eps", 1.5625e-7)),
        activation=read_activation(config, "hidden_act", "silu"),
        layer_norms=_NORMS[config.values["model_type"]],
        qkv_bias=config.flag("attention_bias", default=True),
        gate_up="gate_up_proj",
        is_paired=True,
    )


GLM = Family(tuple(_NORMS), read_glm_config, sequential)
