"""Mixtral: Mistral, with experts in place of its feed-forwards.

Owns what config.json means. Never writes a layer.
"""

from __future__ import annotations

from trident_compiler.checkpoint.json_config import JsonConfig
from trident_compiler.checkpoint.rope import read_rotary
from trident_compiler.families.decoder_config import LayerKind, read_activation, read_sizes
from trident_compiler.families.family import Family
from trident_compiler.families.features import Feature
from trident_compiler.families.mixture import MixtureConfig, read_routing_size, sequential_mixture
from trident_compiler.families.parts import Norm
from trident_compiler.families.words import Routing


def read_mixtral_config(config: JsonConfig) -> MixtureConfig:
    """Understand the config.json of this family.

    Raises:
        CheckpointError: names the key that is missing, malformed or unsupported, with its value.
    """
    sizes = read_sizes(config, positions=131072, kv_heads=8)
    window = None if config.values.get("sliding_window") is None else config.integer("sliding_window")
    rotary = read_rotary(config, sizes.head_dim, sizes.max_position_embeddings)
    return MixtureConfig(
        **sizes.fields(LayerKind(window, rotary)),
        norm=Norm(config.number("rms_norm_eps", 1e-5)),
        activation=read_activation(config, "hidden_act", "silu"),
        routing=Routing(*read_routing_size(config, "num_local_experts", "num_experts_per_tok", (8, 2))),
        expert_size=sizes.intermediate_size,
        is_sparse=(True,) * sizes.num_layers,
        block="block_sparse_moe",
        projections=("w1", "w3", "w2"),
    )


MIXTRAL = Family(("mixtral",), read_mixtral_config, sequential_mixture, features=(Feature.EXPERTS,))
