"""GLM-4 with experts and dots.1: grouped-query attention, and mixtures whose router is DeepSeek-V3's.

Owns what config.json means for both. Never writes a layer.
"""

from __future__ import annotations

from trident_compiler.checkpoint.json_config import JsonConfig
from trident_compiler.checkpoint.rope import read_rotary
from trident_compiler.families.decoder_config import LayerKind, read_activation, read_sizes, read_windows
from trident_compiler.families.family import Family
from trident_compiler.families.features import Feature
from trident_compiler.families.mixture import MixtureConfig, mixture_feed_forward, read_sigmoid_routing
from trident_compiler.families.ops import Ops, Value, Weights
from trident_compiler.families.parts import Norm
from trident_compiler.families.sequential import HeadNorms, layers_of, self_attention

_CHOICE_BIAS, _SHARED = "e_score_correction_bias", "shared_experts"


def read_glm4_moe_config(config: JsonConfig) -> MixtureConfig:
    """Understand the config.json of GLM-4 with experts.

    Raises:
        CheckpointError: names the key that is missing, malformed or unsupported, with its value.
    """
    sizes = read_sizes(config, positions=131072, kv_heads=8, intermediate=10944)
    rotary = read_rotary(config, sizes.head_dim, sizes.max_position_embeddings, partial=0.5)
    size, dense = config.integer("moe_intermediate_size", 1408), config.integer("first_k_dense_replace", 1, least=0)
    return MixtureConfig(
        **sizes.fields(LayerKind(None, rotary)),
        norm=Norm(config.number("rms_norm_eps", 1e-5)),
        activation=read_activation(config, "hidden_act", "silu"),
        head_norms=HeadNorms() if config.flag("use_qk_norm") else None,
        qkv_bias=config.flag("attention_bias"),
        routing=read_sigmoid_routing(config, (128, 8), (1, 1), 1.0, normalised=True),
        expert_size=size,
        is_sparse=tuple(layer >= dense for layer in range(sizes.num_layers)),
        choice_bias=_CHOICE_BIAS,
        shared=_SHARED,
        shared_size=size * config.integer("n_shared_experts", 1),
    )


def read_dots1_config(config: JsonConfig) -> MixtureConfig:
    """Understand the config.json of dots.1.

    Raises:
        CheckpointError: names the key that is missing, malformed or unsupported, with its value.
    """
    sizes = read_sizes(config, positions=2048, intermediate=10944)
    rotary = read_rotary(config, sizes.head_dim, sizes.max_position_embeddings)
    first = config.integer("max_window_layers", 62, least=0)
    present = config.values.get("sliding_window", 4096) is not None
    kinds = tuple(
        "sliding_attention" if present and layer >= first else "full_attention" for layer in range(sizes.num_layers)
    )
    windows = read_windows(config, sizes.num_layers, 4096, kinds)
    size, dense = config.integer("moe_intermediate_size", 1408), config.integer("first_k_dense_replace", 0, least=0)
    bias = config.flag("attention_bias")
    return MixtureConfig(
        **sizes.fields(*(LayerKind(window, rotary) for window in windows)),
        norm=Norm(config.number("rms_norm_eps", 1e-6)),
        activation=read_activation(config, "hidden_act", "silu"),
        head_norms=HeadNorms(),
        qkv_bias=bias,
        output_bias=bias,
        routing=read_sigmoid_routing(config, (128, 6), (1, 1), 1.0, normalised=False),
        expert_size=size,
        is_sparse=tuple(layer >= dense for layer in range(sizes.num_layers)),
        choice_bias=_CHOICE_BIAS,
        shared=_SHARED,
        shared_size=size * config.integer("n_shared_experts"),
    )


def glm_moe(net: Ops[Value], config: MixtureConfig, weights: Weights) -> Value:
    """Write the whole network, or one device's share of it; return the logits, `[R, vocab]`.

    Raises:
        CheckpointError: a tensor is missing or has another shape than the configuration says.
    """
    # The layer that predicts the token after the next one is stored behind the others.
    weights.skip_module(f"model.layers.{config.num_layers}")
    return layers_of(net, config, weights, self_attention, mixture_feed_forward)


DOTS1 = Family(("dots1",), read_dots1_config, glm_moe, features=(Feature.EXPERTS,))
GLM4_MOE = Family(("glm4_moe",), read_glm4_moe_config, glm_moe, features=(Feature.EXPERTS,))
