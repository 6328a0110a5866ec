"""DeepSeek-V2 and V3: multi-head latent attention, and mixtures with experts that every token shares.

Keys and values of all heads are products of one latent vector a token. Here its matrices are absorbed: queries are
taken into the latent space, where one head of keys and of values is cached, and what is attended is taken out of it.

Owns what config.json means, tensor names and the attention. Never chooses an expert.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from trident_compiler.checkpoint.json_config import JsonConfig
from trident_compiler.checkpoint.rope import read_rotary
from trident_compiler.families.decoder_config import LayerKind, read_activation, read_sizes, refuse_other
from trident_compiler.families.family import Family
from trident_compiler.families.features import Feature
from trident_compiler.families.mixture import (
    MixtureConfig,
    mixture_feed_forward,
    read_groups,
    read_routing_size,
    read_sigmoid_routing,
)
from trident_compiler.families.ops import Ops, Value, Weights
from trident_compiler.families.parts import Norm, Parts
from trident_compiler.families.sequential import layers_of
from trident_compiler.families.words import Routing, Scoring
from trident_compiler.weights.roles import Role
from trident_compiler.weights.tensor_parts import LinearPart, TensorPart, halves_of_pairs

#: The norms of latent vectors do not take the configuration's.
_LATENT_EPSILON = 1e-6


@dataclass(frozen=True, kw_only=True)
class DeepseekConfig(MixtureConfig):
    """A decoder with latent attention.

    Args:
        query_rank: size of the latent vector of queries; None: they are projected at once.
        kv_rank: size of the latent vector of keys and values.
        plain_dim: features of a query or key that are not rotated; those that are follow them.
        rotated_dim: features that are.
        v_head_dim: size of a head of values.
        latent_bias: the projections into latent vectors have biases, and so has the output's.
    """

    query_rank: int | None
    kv_rank: int
    plain_dim: int
    rotated_dim: int
    v_head_dim: int
    latent_bias: bool


def read_deepseek_config(config: JsonConfig) -> DeepseekConfig:
    """Understand the config.json of a member.

    Raises:
        CheckpointError: names the key that is missing, malformed or unsupported, with its value.
    """
    is_v3 = config.values["model_type"] == "deepseek_v3"
    plain_dim, rotated_dim = config.integer("qk_nope_head_dim", 128), config.integer("qk_rope_head_dim", 64)
    # transformers writes the rotated part as head_dim; no head has that size.
    sized = JsonConfig(
        {**config.values, "head_dim": plain_dim + rotated_dim, "num_key_value_heads": None}, config.where
    )
    sizes = read_sizes(sized, positions=4096 if is_v3 else 2048, intermediate=18432 if is_v3 else 11008)
    rotary = read_rotary(config, rotated_dim, sizes.max_position_embeddings)
    size = config.integer("moe_intermediate_size", 2048 if is_v3 else 1407)
    dense = config.integer("first_k_dense_replace", 3 if is_v3 else 0, least=0)
    query_rank = config.integer("q_lora_rank", 1536) if config.values.get("q_lora_rank", 1536) is not None else None
    return DeepseekConfig(
        **sizes.fields(LayerKind(None, rotary)),
        norm=Norm(config.number("rms_norm_eps", 1e-6)),
        activation=read_activation(config, "hidden_act", "silu"),
        mlp_bias=not is_v3 and config.flag("mlp_bias"),
        is_paired=config.flag("rope_interleave", default=True) if is_v3 else True,
        attention_scale=_attention_scale(config, plain_dim + rotated_dim),
        routing=read_sigmoid_routing(config, (256, 8), (8, 4), 2.5, normalised=True) if is_v3 else _v2_routing(config),
        expert_size=size,
        is_sparse=tuple(layer >= dense for layer in range(sizes.num_layers)),
        choice_bias="e_score_correction_bias" if is_v3 else None,
        shared="shared_experts",
        shared_size=size * config.integer("n_shared_experts", 1 if is_v3 else 2),
        shared_bias=not is_v3 and config.flag("mlp_bias"),
        query_rank=query_rank,
        kv_rank=config.integer("kv_lora_rank", 512),
        plain_dim=plain_dim,
        rotated_dim=rotated_dim,
        v_head_dim=config.integer("v_head_dim", 128),
        latent_bias=config.flag("attention_bias"),
    )


def _attention_scale(config: JsonConfig, head_dim: int) -> float:
    """Return the factor on scores; a stretched rotary embedding makes it larger."""
    scaling = config.section("rope_scaling") or config.section("rope_parameters") or JsonConfig({}, config.where)
    kind = scaling.values.get("rope_type") or scaling.values.get("type") or "default"
    dimension = scaling.number("mscale_all_dim", 0.0, zero=True)
    factor = scaling.number("factor", 1.0)
    stretched = kind != "default" and dimension and factor > 1
    return float(head_dim**-0.5 * ((0.1 * dimension * math.log(factor) + 1) ** 2 if stretched else 1))


def _v2_routing(config: JsonConfig) -> Routing:
    # transformers never divides the weights by their sum, whatever norm_topk_prob says.
    refuse_other(config, {"scoring_func": "softmax", "moe_layer_freq": 1, "norm_topk_prob": False})
    experts, chosen = read_routing_size(config, "n_routed_experts", "num_experts_per_tok", (64, 6))
    method = config.values.get("topk_method") or "greedy"
    if method not in ("greedy", "group_limited_greedy"):
        raise config.refuse("topk_method", "not supported; greedy and group_limited_greedy are")
    groups, best = (1, 1) if method == "greedy" else read_groups(config, experts, chosen, (1, 1), least=1)
    factor = config.number("routed_scaling_factor", 1.0)
    return Routing(experts, chosen, Scoring.SOFTMAX, False, factor, None, groups, best)


def deepseek(net: Ops[Value], config: DeepseekConfig, weights: Weights) -> Value:
    """Write the whole network, or one device's share of it; return the logits, `[R, vocab]`.

    Raises:
        CheckpointError: a tensor is missing or has another shape than the configuration says.
    """
    # The layer that predicts the token after the next one is stored behind the others.
    weights.skip_module(f"model.layers.{config.num_layers}")
    return layers_of(net, config, weights, _latent_attention, mixture_feed_forward)


def _latent_attention(parts: Parts[Value], config: DeepseekConfig, layer: int, x: Value) -> Value:
    net, attention = parts.net, f"model.layers.{layer}.self_attn"
    plain, rotated, rank = config.plain_dim, config.rotated_dim, config.kv_rank
    queries = net.split_heads(_queries(parts, config, attention, x), parts.num_heads)
    latent = LinearPart(f"{attention}.kv_a_proj_with_mqa")
    if config.is_paired:
        latent = latent.reordered(halves_of_pairs(1, rank + rotated, rotated, rank))
    both = parts.whole(x, latent, rank + rotated, config.hidden_size, bias=config.latent_bias)
    normed = _latent_norm(parts, net.slice(both, 0, rank), f"{attention}.kv_a_layernorm", rank)
    value = net.split_heads(normed, 1)
    key = net.concat(value, parts.rotated(layer, net.split_heads(net.slice(both, rank, rank + rotated), 1)))

    # The rows of each head: keys, then values.
    each, count = plain + config.v_head_dim, config.num_heads
    name, stored = f"{attention}.kv_b_proj.weight", (count * each, rank)
    into = [
        TensorPart(name, stored, f"keys {head}", transposed=True, columns=range(head * each, head * each + plain))
        for head in range(count)
    ]
    out_of = [
        TensorPart(name, stored, f"values {head}", rows=range(head * each + plain, (head + 1) * each))
        for head in range(count)
    ]
    within = net.head_linear(net.slice(queries, 0, plain), parts.weights.stack(into, rank, plain, Role.HEADS))
    query = net.concat(within, parts.rotated(layer, net.slice(queries, plain, plain + rotated)))
    attended = parts.attend(layer, query, key, value, scale=config.attention_scale)
    outputs = net.head_linear(
        net.split_heads(attended, parts.num_heads), parts.weights.stack(out_of, config.v_head_dim, rank, Role.HEADS)
    )
    width = count * config.v_head_dim
    return parts.row(net.merge_heads(outputs), f"{attention}.o_proj", width, bias=config.latent_bias)


def _queries(parts: Parts[Value], config: DeepseekConfig, attention: str, x: Value) -> Value:
    head_dim, count = config.plain_dim + config.rotated_dim, config.num_heads
    part = LinearPart(f"{attention}.q_proj" if config.query_rank is None else f"{attention}.q_b_proj")
    if config.is_paired:
        part = part.reordered(halves_of_pairs(count, head_dim, config.rotated_dim, config.plain_dim))
    if config.query_rank is None:
        return parts.column(x, part, count * head_dim)
    latent = parts.whole(x, f"{attention}.q_a_proj", config.query_rank, config.hidden_size, bias=config.latent_bias)
    normed = _latent_norm(parts, latent, f"{attention}.q_a_layernorm", config.query_rank)
    return parts.column(normed, part, count * head_dim, in_size=config.query_rank)


def _latent_norm(parts: Parts[Value], x: Value, name: str, size: int) -> Value:
    return parts.net.rms_norm(x, parts.weights.vector(f"{name}.weight", size), _LATENT_EPSILON)


DEEPSEEK = Family(
    ("deepseek_v2", "deepseek_v3"),
    read_deepseek_config,
    deepseek,
    features=(Feature.VALUE_HEAD_DIM, Feature.HEAD_MATRICES, Feature.EXPERTS),
)
