"""Qwen2-MoE, Qwen3-MoE and OLMoE: decoders with many small experts.

Qwen2-MoE has an expert that every token shares, behind a gate; the others differ in biases and norms.

Owns what config.json means for each. Never writes a layer.
"""

from __future__ import annotations

from trident_compiler.checkpoint.json_config import JsonConfig
from trident_compiler.checkpoint.rope import read_rotary
from trident_compiler.families.decoder_config import LayerKind, read_activation, read_sizes, read_windows
from trident_compiler.families.family import Family
from trident_compiler.families.features import Feature
from trident_compiler.families.mixture import MixtureConfig, read_routing_size, sequential_mixture, sparse_layers
from trident_compiler.families.parts import Norm
from trident_compiler.families.sequential import HeadNorms, HeadScale
from trident_compiler.families.words import Routing


def read_qwen2_moe_config(config: JsonConfig) -> MixtureConfig:
    """Understand the config.json of Qwen2-MoE.

    Raises:
        CheckpointError: names the key that is missing, malformed or unsupported, with its value.
    """
    sizes = read_sizes(config, positions=32768, kv_heads=16, intermediate=5632)
    rotary = read_rotary(config, sizes.head_dim, sizes.max_position_embeddings)
    windows: tuple[int | None, ...] = (None,) * sizes.num_layers
    if config.flag("use_sliding_window"):
        # Every second one of the first layers; the key's name says the opposite of what it does.
        most = config.integer("max_window_layers", 28, least=0)
        kinds = tuple(
            "full_attention" if layer % 2 or layer >= most else "sliding_attention" for layer in range(sizes.num_layers)
        )
        windows = read_windows(config, sizes.num_layers, 4096, kinds)
    return MixtureConfig(
        **sizes.fields(*(LayerKind(window, rotary) for window in windows)),
        norm=Norm(config.number("rms_norm_eps", 1e-6)),
        activation=read_activation(config, "hidden_act", "silu"),
        qkv_bias=config.flag("qkv_bias", default=True),
        routing=_routing(config, (60, 4)),
        expert_size=config.integer("moe_intermediate_size", 1408),
        is_sparse=sparse_layers(config, sizes.num_layers),
        shared="shared_expert",
        shared_size=config.integer("shared_expert_intermediate_size", 5632),
        shared_gate="shared_expert_gate",
    )


def read_qwen3_moe_config(config: JsonConfig) -> MixtureConfig:
    """Understand the config.json of Qwen3-MoE.

    Raises:
        CheckpointError: names the key that is missing, malformed or unsupported, with its value.
    """
    sizes = read_sizes(config, positions=32768, kv_heads=4, intermediate=6144)
    rotary = read_rotary(config, sizes.head_dim, sizes.max_position_embeddings)
    window = None
    if config.flag("use_sliding_window") and config.values.get("sliding_window", 4096) is not None:
        window = config.integer("sliding_window", 4096)
    bias = config.flag("attention_bias")
    return MixtureConfig(
        **sizes.fields(LayerKind(window, rotary)),
        norm=Norm(config.number("rms_norm_eps", 1e-6)),
        activation=read_activation(config, "hidden_act", "silu"),
        head_norms=HeadNorms(),
        qkv_bias=bias,
        output_bias=bias,
        routing=_routing(config, (128, 8)),
        expert_size=config.integer("moe_intermediate_size", 768),
        is_sparse=sparse_layers(config, sizes.num_layers),
    )


def read_olmoe_config(config: JsonConfig) -> MixtureConfig:
    """Understand the config.json of OLMoE.

    Raises:
        CheckpointError: names the key that is missing, malformed or unsupported, with its value.
    """
    sizes = read_sizes(config, positions=4096, intermediate=2048)
    bias = config.flag("attention_bias")
    return MixtureConfig(
        **sizes.fields(LayerKind(None, read_rotary(config, sizes.head_dim, sizes.max_position_embeddings))),
        norm=Norm(config.number("rms_norm_eps", 1e-5)),
        activation=read_activation(config, "hidden_act", "silu"),
        head_norms=HeadNorms(HeadScale.ACROSS),
        qkv_bias=bias,
        output_bias=bias,
        qkv_clip=None if config.values.get("clip_qkv") is None else config.number("clip_qkv"),
        routing=_routing(config, (64, 8)),
        expert_size=sizes.intermediate_size,
        is_sparse=(True,) * sizes.num_layers,
    )


def _routing(config: JsonConfig, default: tuple[int, int]) -> Routing:
    """transformers 5 writes `num_local_experts` where checkpoints have `num_experts`."""
    key = "num_experts" if config.values.get("num_experts") is not None else "num_local_experts"
    experts, chosen = read_routing_size(config, key, "num_experts_per_tok", default)
    return Routing(experts, chosen, normalised=config.flag("norm_topk_prob"))


OLMOE = Family(("olmoe",), read_olmoe_config, sequential_mixture, features=(Feature.EXPERTS,))
QWEN2_MOE = Family(("qwen2_moe",), read_qwen2_moe_config, sequential_mixture, features=(Feature.EXPERTS,))
QWEN3_MOE = Family(("qwen3_moe",), read_qwen3_moe_config, sequential_mixture, features=(Feature.EXPERTS,))
