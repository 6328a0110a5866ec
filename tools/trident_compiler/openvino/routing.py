"""The routing of a mixture of experts in OpenVINO: which experts each token has, and with which weights.

Owns every kind of choice that `Routing` describes. Never computes an expert.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from openvino import opset15 as ops

from trident_compiler.families.words import Routing, Scoring
from trident_compiler.weights.weights import Weight

Node = Any  # openvino's Python classes come without usable types


def route(logits: Node, routing: Routing, vector: Callable[[Weight], Node]) -> Node:
    """Return the weight of each expert for each token, `[T, experts]`, 0 for those that it has not chosen.

    Args:
        logits: the router's, `[T, 1, experts]`.
        routing: how experts are chosen by them, and weighted.
        vector: makes a constant of a weight.
    """
    logits = ops.reshape(logits, _ints([-1, routing.num_experts]), special_zero=False)
    shares, chosen = _chosen(logits, routing, vector)
    num_tokens = ops.gather(ops.shape_of(logits, "i32"), _ints([0]), _int(0))
    nothing = ops.broadcast(_float(0), ops.concat([num_tokens, _ints([routing.num_experts])], 0))
    return ops.scatter_elements_update(nothing, chosen, shares, _int(1))


def _chosen(logits: Node, routing: Routing, vector: Callable[[Weight], Node]) -> tuple[Node, Node]:
    """Return the weights of each token's chosen experts and their numbers, `[T, chosen]`."""
    if routing.scoring is Scoring.SOFTMAX:
        scores = ops.softmax(logits, 1)
    else:
        scores = ops.sigmoid(logits) if routing.scoring is Scoring.SIGMOID else logits
    preferred = scores
    if routing.choice_bias is not None:
        preferred = ops.add(preferred, vector(routing.choice_bias))
    if routing.num_chosen_groups < routing.num_groups:
        preferred = _of_best_groups(preferred, routing)
    shares, chosen = _top(preferred, routing.num_chosen)
    if preferred is not scores:
        shares = ops.gather_elements(scores, chosen, 1)
    if routing.scoring is Scoring.SOFTMAX_OF_CHOSEN:
        shares = ops.softmax(shares, 1)
    if routing.normalised:
        total = ops.reduce_sum(shares, _ints([-1]), True)
        shares = ops.divide(shares, ops.add(total, _float(routing.sum_epsilon)) if routing.sum_epsilon else total)
    return (shares if routing.factor == 1 else ops.multiply(shares, _float(routing.factor))), chosen


def _of_best_groups(scores: Node, routing: Routing) -> Node:
    """Return scores `[T, experts]` with minus infinity for all experts that are not of a token's best groups."""
    members = routing.num_experts // routing.num_groups
    grouped = ops.reshape(scores, _ints([-1, routing.num_groups, members]), special_zero=False)
    best = ops.reduce_sum(_top(grouped, routing.group_top)[0], _ints([-1]), False)
    _, chosen = _top(best, routing.num_chosen_groups)
    marks = ops.broadcast(_float(1), ops.shape_of(chosen, "i32"))
    mask = ops.scatter_elements_update(ops.multiply(best, _float(0)), chosen, marks, _int(1))
    kept = ops.select(ops.greater(ops.unsqueeze(mask, _int(2)), _float(0)), grouped, _float(-np.inf))
    return ops.reshape(kept, _ints([-1, routing.num_experts]), special_zero=False)


def _top(scores: Node, count: int) -> tuple[Any, Any]:
    found = ops.topk(scores, _int(count), -1, "max", "value", index_element_type="i32")
    return found.output(0), found.output(1)


def _ints(values: list[int]) -> Node:
    return ops.constant(np.array(values, np.int32))


def _int(value: int) -> Node:
    return ops.constant(np.array(value, np.int32))


def _float(value: float) -> Node:
    return ops.constant(np.array(value, np.float32))
