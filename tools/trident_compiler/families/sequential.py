"""Decoders whose layers are attention and then a feed-forward, with the names of tensors that most of them use.

Owns the one network of all families that differ from each other by a table: where norms stand and what they are called,
biases, factors, and the order in which a checkpoint keeps rotated features. Never reads a configuration.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from trident_compiler.families.decoder_config import DecoderConfig
from trident_compiler.families.ops import Ops, Value, Weights
from trident_compiler.families.parts import Norm, Parts
from trident_compiler.families.words import Activation
from trident_compiler.weights.roles import Role
from trident_compiler.weights.tensor_parts import LinearPart, TensorPart, fused, halves_of_pairs
from trident_compiler.weights.weights import Weight

_TABLE, _HEAD = "model.embed_tokens.weight", "lm_head.weight"
#: A buffer of old checkpoints that follows from the configuration.
_FREQUENCIES = ".rotary_emb.inv_freq"


@dataclass(frozen=True)
class LayerNorms:
    """The names of a layer's norms; None where there is none.

    Args:
        before_attention: of its input.
        after_attention: of its output, before that is added.
        before_mlp: of the feed-forward's input.
        after_mlp: of its output, before that is added.
    """

    before_attention: str | None = "input_layernorm"
    after_attention: str | None = None
    before_mlp: str | None = "post_attention_layernorm"
    after_mlp: str | None = None


class HeadScale(Enum):
    """The features of queries and keys that a norm takes together, and its scale."""

    #: Each head by itself, all with one scale `[head_dim]`.
    SHARED = "shared"
    #: Each head by itself, with a scale of its own, stored as `[heads, head_dim]`.
    OWN = "own"
    #: All heads together, with a scale `[heads * head_dim]`.
    ACROSS = "across"


@dataclass(frozen=True)
class HeadNorms:
    """The norms of queries and keys.

    Args:
        scale: over what they go.
        query: the name of that of queries.
        key: the name of that of keys.
        after_rotary: they follow the rotation; they precede it otherwise.
    """

    scale: HeadScale = HeadScale.SHARED
    query: str = "q_norm"
    key: str = "k_norm"
    after_rotary: bool = False


@dataclass(frozen=True)
class SequentialConfig(DecoderConfig):
    """A decoder of this structure.

    Args:
        norm: how the family normalises.
        activation: of the feed-forward's gate, or of its inner features where it has none.
        layer_norms: where norms stand.
        head_norms: the norms of queries and keys, if there are any.
        qkv_bias: queries, keys and values are projected with a bias.
        output_bias: attention's output is projected with a bias.
        mlp_bias: the feed-forward's layers have biases.
        is_gated: the feed-forward has a gate.
        gate_up: the stored layer that holds the gate and the up projection, where one does.
        is_paired: the checkpoint rotates neighbouring features against each other.
        qkv_clip: bound on the size of queries, keys and values, where all heads were normalised after that.
        attention_scale: of scores; None is `head_dim^-0.5`.
        attention_cap: bound on scores.
        has_sinks: each head has a score that takes part in the softmax and has no value.
        embedding_factor: on the embeddings.
        residual_factor: on each branch, before it is added.
        logits_factor: on the logits.
        logits_cap: bound on the logits.
    """

    norm: Norm
    activation: Activation = Activation.SILU
    layer_norms: LayerNorms = LayerNorms()
    head_norms: HeadNorms | None = None
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    is_gated: bool = True
    gate_up: str | None = None
    is_paired: bool = False
    qkv_clip: float | None = None
    attention_scale: float | None = None
    attention_cap: float | None = None
    has_sinks: bool = False
    embedding_factor: float = 1.0
    residual_factor: float = 1.0
    logits_factor: float = 1.0
    logits_cap: float | None = None


Config = TypeVar("Config", bound=SequentialConfig)
#: Writes one branch of a layer over its normalised input; returns what is added.
Branch = Callable[[Parts[Value], Config, int, Value], Value]


def sequential(net: Ops[Value], config: SequentialConfig, weights: Weights) -> Value:
    """Write the whole network, or one device's share of it; return the logits, `[R, vocab]`.

    Raises:
        CheckpointError: a tensor is missing or has another shape than the configuration says.
    """
    return layers_of(net, config, weights, self_attention, feed_forward)


def layers_of(
    net: Ops[Value], config: Config, weights: Weights, attention: Branch[Value, Config], mlp: Branch[Value, Config]
) -> Value:
    """Write a network whose layers have these two branches; return the logits, `[R, vocab]`."""
    parts = Parts(net, weights, config, config.norm)
    norms = config.layer_norms
    hidden = embedded(parts, config)
    for layer in range(config.num_layers):
        prefix = f"model.layers.{layer}"
        branch = attention(parts, config, layer, _normed(parts, hidden, prefix, norms.before_attention))
        branch = _normed(parts, branch, prefix, norms.after_attention)
        hidden = net.add(hidden, parts.scaled(branch, config.residual_factor))
        branch = mlp(parts, config, layer, _normed(parts, hidden, prefix, norms.before_mlp))
        branch = _normed(parts, branch, prefix, norms.after_mlp)
        hidden = net.add(hidden, parts.scaled(branch, config.residual_factor))
    return output(parts, config, hidden)


def embedded(parts: Parts[Value], config: SequentialConfig) -> Value:
    """Write what precedes the layers; return the embeddings of the step's tokens."""
    parts.weights.skip(_FREQUENCIES)
    return parts.scaled(parts.embedding(_TABLE), config.embedding_factor)


def self_attention(parts: Parts[Value], config: SequentialConfig, layer: int, x: Value) -> Value:
    """Write a layer's attention over normalised `x`; return what is added."""
    attention, norms = f"model.layers.{layer}.self_attn", config.head_norms or HeadNorms()
    names = f"{attention}.q_proj", f"{attention}.{norms.query}"
    query = _rotated_heads(parts, config, layer, x, names=names, num_heads=config.num_heads)
    names = f"{attention}.k_proj", f"{attention}.{norms.key}"
    key = _rotated_heads(parts, config, layer, x, names=names, num_heads=config.num_kv_heads)
    value = _clipped(parts, config, parts.column(x, f"{attention}.v_proj", parts.kv_size, bias=config.qkv_bias))
    scale, cap, sinks = config.attention_scale, config.attention_cap, None
    if config.has_sinks:
        sinks = parts.weights.vector(f"{attention}.sinks", config.num_heads, Role.COLUMN_BIAS)
    attended = parts.attend(layer, query, key, parts.kv_heads(value), scale=scale, soft_cap=cap, sinks=sinks)
    return parts.row(attended, f"{attention}.o_proj", parts.query_size, bias=config.output_bias)


def feed_forward(parts: Parts[Value], config: SequentialConfig, layer: int, x: Value) -> Value:
    """Write a layer's feed-forward over normalised `x`; return what is added."""
    mlp, inner = f"model.layers.{layer}.mlp", config.intermediate_size
    gate: str | LinearPart = f"{mlp}.gate_proj"
    up: str | LinearPart = f"{mlp}.up_proj"
    down = f"{mlp}.down_proj"
    if not config.is_gated:
        return parts.plain(x, up, down, config.activation, bias=config.mlp_bias)
    if config.gate_up is not None:
        gate, up = fused(f"{mlp}.{config.gate_up}", gate=inner, up=inner)
    return parts.gated(x, gate, up, down, config.activation, bias=config.mlp_bias)


def output(parts: Parts[Value], config: SequentialConfig, hidden: Value) -> Value:
    """Write what follows the layers; return the logits, `[R, vocab]`."""
    logits = parts.logits(parts.norm(parts.net.select_rows(hidden), "model.norm"), _TABLE, _HEAD)
    return parts.capped(parts.scaled(logits, config.logits_factor), config.logits_cap)


def _normed(parts: Parts[Value], x: Value, prefix: str, name: str | None) -> Value:
    return x if name is None else parts.norm(x, f"{prefix}.{name}")


def _clipped(parts: Parts[Value], config: SequentialConfig, x: Value) -> Value:
    return x if config.qkv_clip is None else parts.net.clamp(x, -config.qkv_clip, config.qkv_clip)


def _rotated_heads(
    parts: Parts[Value], config: SequentialConfig, layer: int, x: Value, *, names: tuple[str, str], num_heads: int
) -> Value:
    """Queries or keys, normalised and rotated; `names` are those of the projection and of the norm."""
    (projection, norm), norms = names, config.head_norms
    order, size = _pair_order(config, layer, num_heads), num_heads * config.head_dim
    part = LinearPart(projection) if order is None else LinearPart(projection).reordered(order)
    wide = parts.column(x, part, size, bias=config.qkv_bias)
    if norms is not None and norms.scale is HeadScale.ACROSS:
        wide = parts.norm(wide, norm, size, Role.COLUMN_BIAS, all_reduce=True)
    heads = parts.net.split_heads(_clipped(parts, config, wide), num_heads // parts.weights.num_devices)
    if norms is None or norms.scale is HeadScale.ACROSS:
        return parts.rotated(layer, heads)
    scale = _head_scale(parts, config, norm, num_heads, _pair_order(config, layer, 1))
    if norms.after_rotary:
        return _normed_heads(parts, config, parts.rotated(layer, heads), scale)
    return parts.rotated(layer, _normed_heads(parts, config, heads, scale))


def _head_scale(
    parts: Parts[Value], config: SequentialConfig, name: str, num_heads: int, order: npt.NDArray[np.intp] | None
) -> Weight | None:
    """The scale of a norm of single heads."""
    tensor, size, norms = f"{name}.weight", config.head_dim, config.head_norms
    if not config.norm.has_scale:
        return None
    if norms is None or norms.scale is HeadScale.SHARED:
        return parts.weights.vector(TensorPart(tensor, (size,), rows=order), size, plus=config.norm.plus)
    shape = (num_heads, size)
    sources = [TensorPart(tensor, shape, str(head), head, rows=order) for head in range(num_heads)]
    return parts.weights.stacked_vector(sources, size, Role.HEAD_VECTORS)


def _normed_heads(parts: Parts[Value], config: SequentialConfig, heads: Value, scale: Weight | None) -> Value:
    norm = config.norm
    if norm.is_rms:
        return parts.net.rms_norm(heads, scale, norm.epsilon)
    return parts.net.layer_norm(heads, scale, None, norm.epsilon)


def _pair_order(config: SequentialConfig, layer: int, num_heads: int) -> npt.NDArray[np.intp] | None:
    """The order of features that brings rotated ones into halves; None where they are."""
    rotary = config.layers[layer].rotary
    if not config.is_paired or rotary is None:
        return None
    return halves_of_pairs(num_heads, config.head_dim, rotary.rotated)
