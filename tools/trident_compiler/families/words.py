"""The values that describe an operation of the network language: activations, attention, routing, experts.

Owns what can be said of each. Never computes anything: a lowering reads them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import TypeVar

from trident_compiler.weights.weights import Weight

Value = TypeVar("Value")
#: Makes the input of the down projection of `gate` and `up`.
Gating = Callable[[Value, Value], Value]


class Activation(Enum):
    """A function of one number."""

    #: `x * sigmoid(x)`.
    SILU = "silu"
    #: `x * Phi(x)`, with the error function.
    GELU = "gelu"
    #: GELU's approximation by tanh.
    GELU_TANH = "gelu_tanh"
    #: `max(x, 0)`.
    RELU = "relu"
    #: `max(x, 0)^2`.
    RELU_SQUARED = "relu_squared"
    #: `1 / (1 + exp(-x))`.
    SIGMOID = "sigmoid"
    #: The hyperbolic tangent.
    TANH = "tanh"


@dataclass(frozen=True)
class Attention:
    """The attention of one layer.

    Args:
        scale: factor on the products of query and key.
        sliding_window: a token sees the last so many tokens, itself included; None is all.
        alibi_slopes: float32 `[heads]`: a score gets slope times (position of the key - position of the query).
        sinks: float32 `[heads]`: a score that takes part in the softmax and has no value.
        soft_cap: scores become `cap * tanh(score / cap)` before the softmax.
    """

    scale: float
    sliding_window: int | None = None
    alibi_slopes: Weight | None = None
    sinks: Weight | None = None
    soft_cap: float | None = None


class Scoring(Enum):
    """The way from a router's logits to the weights of the chosen experts."""

    #: The softmax over all experts.
    SOFTMAX = "softmax"
    #: The softmax over the chosen ones.
    SOFTMAX_OF_CHOSEN = "softmax of the chosen"
    #: The sigmoid of each.
    SIGMOID = "sigmoid"


@dataclass(frozen=True)
class Routing:
    """The choice of each token's experts.

    Args:
        num_experts: how many there are.
        num_chosen: how many of them each token has; those with the largest scores.
        scoring: scores by the router's logits.
        normalised: the weights of the chosen ones are divided by their sum.
        factor: on the weights, after that.
        choice_bias: float32 `[experts]`, added to the scores for the choice alone.
        num_groups: experts form so many groups of neighbours.
        num_chosen_groups: only the experts of the best so many groups are chosen from; `num_groups` is all.
        group_top: a group's score is the sum of its best so many scores.
        sum_epsilon: is added to the sum by which weights are divided.
    """

    num_experts: int
    num_chosen: int
    scoring: Scoring = Scoring.SOFTMAX
    normalised: bool = True
    factor: float = 1.0
    choice_bias: Weight | None = None
    num_groups: int = 1
    num_chosen_groups: int = 1
    group_top: int = 1
    sum_epsilon: float = 0.0


@dataclass(frozen=True)
class Experts:
    """The weights of experts, of which each is a gated feed-forward.

    Args:
        gate: `[experts, inner, hidden]`, column-parallel; so is `up`.
        up: `[experts, inner, hidden]`.
        down: `[experts, hidden, inner]`, row-parallel.
        gate_bias: `[experts, inner]`; either all three biases are there, or none.
        up_bias: `[experts, inner]`.
        down_bias: `[experts, hidden]`.
    """

    gate: Weight
    up: Weight
    down: Weight
    gate_bias: Weight | None = None
    up_bias: Weight | None = None
    down_bias: Weight | None = None
