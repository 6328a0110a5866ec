"""Which experts each token has, and with which weights, in TensorRT's network API.

Owns the choice, in single precision. Never computes an expert.
"""

from __future__ import annotations

import numpy as np

from trident_compiler.families.words import Routing, Scoring
from trident_compiler.tensorrt.layers import Tensor, TensorRTLayers


def expert_weights(layers: TensorRTLayers, logits: Tensor, routing: Routing) -> Tensor:
    """Return float32 `[T, experts]`: each token's weights of its chosen experts, and 0 for the others.

    Args:
        layers: of the network.
        logits: the router's, `[T, experts]`.
        routing: how experts are chosen.
    """
    scores = _scores(layers, layers.cast(logits, layers.trt.float32), routing.scoring)
    choice = scores
    if routing.choice_bias is not None:
        choice = layers.elementwise("SUM", scores, layers.constant(routing.choice_bias.values[None]))
    if routing.num_chosen_groups < routing.num_groups:
        choice = _in_best_groups(layers, choice, routing)
    _, ids = layers.largest(choice, routing.num_chosen)
    chosen = layers.gather_each(scores, ids)
    if routing.scoring is Scoring.SOFTMAX_OF_CHOSEN:
        chosen = layers.softmax(chosen)
    if routing.normalised:
        whole = layers.reduce("SUM", chosen, 1, keep=True)
        if routing.sum_epsilon:
            whole = layers.elementwise("SUM", whole, layers.number(routing.sum_epsilon))
        chosen = layers.elementwise("DIV", chosen, whole)
    if routing.factor != 1:
        chosen = layers.elementwise("PROD", chosen, layers.number(routing.factor))
    return _spread(layers, ids, chosen, routing.num_chosen, routing.num_experts)


def _scores(layers: TensorRTLayers, logits: Tensor, scoring: Scoring) -> Tensor:
    if scoring is Scoring.SOFTMAX:
        return layers.softmax(logits)
    return layers.activation("SIGMOID", logits) if scoring is Scoring.SIGMOID else logits


def _in_best_groups(layers: TensorRTLayers, choice: Tensor, routing: Routing) -> Tensor:
    """Leave nothing to choose outside of the best groups."""
    size = routing.num_experts // routing.num_groups
    grouped = layers.reshape(choice, -1, routing.num_groups, size)
    best, _ = layers.largest(grouped, routing.group_top, axis=2)
    _, ids = layers.largest(layers.reduce("SUM", best, 2), routing.num_chosen_groups)
    ones = layers.number(1, 3)
    is_best = _spread(layers, ids, ones, routing.num_chosen_groups, routing.num_groups)
    is_best = layers.elementwise("GREATER", layers.reshape(is_best, -1, routing.num_groups, 1), layers.number(0, 3))
    left = layers.select(is_best, grouped, layers.number(-np.inf, 3))
    return layers.reshape(left, -1, routing.num_experts)


def _spread(layers: TensorRTLayers, ids: Tensor, values: Tensor, count: int, size: int) -> Tensor:
    """Put the value of each of `count` different ids `[T, count]` in its place of `[T, size]`, among zeros."""
    places = layers.constant(np.arange(size, dtype=np.int32).reshape(1, 1, -1))
    is_place = layers.elementwise("EQUAL", layers.reshape(ids, -1, count, 1), places)
    values = values if len(values.shape) == 3 else layers.reshape(values, -1, count, 1)
    return layers.reduce("SUM", layers.select(is_place, values, layers.number(0, 3)), 1)
