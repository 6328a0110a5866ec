"""A mixture of experts in OpenVINO: how tokens choose experts, and the two forms in which the chosen ones are computed.

Owns the routing, both forms, and the choice between them. Few experts are branched: each lies in a branch of its own,
which is not entered when no token has chosen it, and which computes all that have with one product. Many are gathered:
the graph computes every expert for every token, in the very pattern that the CPU plugin replaces by products with the
chosen experts alone. Never makes a constant of a weight: it is given what does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import openvino as ov
from openvino import opset15 as ops

from trident_compiler.families.words import Experts, Gating, Routing, Scoring
from trident_compiler.weights.weights import Weight

Node = Any  # openvino's Python classes come without usable types
#: Experts up to so many are branched. A branch costs its own overhead in every step, also when nobody chose it.
MOST_BRANCHED = 8
#: The gatings that the plugin knows, as `_expression` writes them: of experts without biases, and with them.
_SWISH = "Multiply(Multiply(Sigmoid(gate),gate),up)"
_CLAMPED_SWISH = (
    "Multiply(Add(Clamp(up),number),Multiply(Minimum(gate,number),Sigmoid(Multiply(Minimum(gate,number),number))))"
)


@dataclass(frozen=True)
class ExpertWeights:
    """Makes constants of weights, as the plugin recognises them.

    Args:
        matrix: of a matrix `[out, in]`, or of a stack of them.
        vector: of float32.
    """

    matrix: Callable[[Weight], Node]
    vector: Callable[[Weight], Node]


def mixture(
    x: Node, logits: Node, routing: Routing, experts: Experts, gating: Gating[Node], weights: ExpertWeights
) -> Node:
    """Return the weighted sum of the outputs of each token's chosen experts, `[T, 1, hidden]`.

    Args:
        x: `[T, 1, hidden]`.
        logits: `[T, 1, experts]`.
        routing: how experts are chosen by them, and weighted.
        experts: the weights of their feed-forwards.
        gating: makes the input of the down projection.
        weights: makes constants of weights.
    """
    hidden = experts.down.shape[1]
    flat = ops.reshape(x, _ints([-1, hidden]), special_zero=False)
    shares, chosen = _route(ops.reshape(logits, _ints([-1, routing.num_experts]), special_zero=False), routing, weights)
    num_tokens = ops.gather(ops.shape_of(flat, "i32"), _ints([0]), _int(0))
    nothing = ops.broadcast(_float(0), ops.concat([num_tokens, _ints([routing.num_experts])], 0))
    table = ops.scatter_elements_update(nothing, chosen, shares, _int(1))
    form = _gathered if is_gathered(experts, gating) else _branched
    return ops.reshape(form(flat, table, experts, gating, weights), _ints([-1, 1, hidden]), special_zero=False)


def is_gathered(experts: Experts, gating: Gating[Node]) -> bool:
    """Return whether experts are computed by gathered products; otherwise they are branched."""
    gate, up = ops.parameter([-1, 1], np.float32), ops.parameter([-1, 1], np.float32)
    gate.set_friendly_name("gate")
    up.set_friendly_name("up")
    pattern = _SWISH if experts.gate_bias is None else _CLAMPED_SWISH
    return experts.gate.shape[0] > MOST_BRANCHED and _expression(gating(gate, up)) == pattern


def _expression(node: Node) -> str:
    kind = node.get_type_name()
    if kind in {"Parameter", "Constant"}:
        return str(node.get_friendly_name()) if kind == "Parameter" else "number"
    inputs = (_expression(node.input_value(index).get_node()) for index in range(node.get_input_size()))
    return f"{kind}({','.join(sorted(inputs))})"


def _route(logits: Node, routing: Routing, weights: ExpertWeights) -> tuple[Node, Node]:
    """Return the weights of each token's chosen experts and their numbers, `[T, chosen]`, of logits `[T, experts]`."""
    if routing.scoring is Scoring.SOFTMAX:
        scores = ops.softmax(logits, 1)
    else:
        scores = ops.sigmoid(logits) if routing.scoring is Scoring.SIGMOID else logits
    preferred = scores
    if routing.choice_bias is not None:
        preferred = ops.add(preferred, weights.vector(routing.choice_bias))
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


def _gathered(x: Node, table: Node, experts: Experts, gating: Gating[Node], weights: ExpertWeights) -> Node:
    """Return the sum over all experts, in the pattern that becomes products with those that `table` has weights for.

    Without biases gate and up are two products. With them the pattern has one, whose rows alternate.
    """
    num_experts, hidden = experts.gate.shape[0], experts.down.shape[1]
    copies = ops.reshape(ops.tile(x, _ints([num_experts, 1])), _ints([num_experts, -1, hidden]), special_zero=False)
    if experts.gate_bias is None or experts.up_bias is None or experts.down_bias is None:
        gate, up = (_product(copies, weights.matrix(weight)) for weight in (experts.gate, experts.up))
        outputs = _product(gating(gate, up), weights.matrix(experts.down))
    else:
        both = _product(copies, weights.matrix(_alternating(experts.gate, experts.up)))
        both = ops.add(both, _of_each(weights, _alternating(experts.gate_bias, experts.up_bias)))
        inner = gating(_every_second(both, 0), _every_second(both, 1))
        outputs = ops.add(_product(inner, weights.matrix(experts.down)), _of_each(weights, experts.down_bias))
    outputs = ops.reshape(outputs, _ints([num_experts, -1, 1, hidden]), special_zero=False)
    shares = ops.reshape(ops.transpose(table, _ints([1, 0])), _ints([num_experts, -1, 1]), special_zero=False)
    return ops.reduce_sum(ops.multiply(outputs, ops.unsqueeze(shares, _int(-1))), _int(0), False)


def _alternating(first: Weight, second: Weight) -> Weight:
    """Return `[experts, rows, ...]` of two weights as one with twice the rows, in turn one of each."""

    def woven(a: Any, b: Any) -> Any:
        return None if a is None else np.stack([a, b], 2).reshape(a.shape[0], 2 * a.shape[1], *a.shape[2:])

    return replace(
        first,
        name=f"{first.name} and {second.name}",
        shape=(first.shape[0], 2 * first.shape[1], *first.shape[2:]),
        values=woven(first.values, second.values),
        scales=woven(first.scales, second.scales),
        zero_points=woven(first.zero_points, second.zero_points),
    )


def _every_second(x: Node, begin: int) -> Node:
    return ops.slice(x, _ints([begin]), _ints([2**31 - 1]), _ints([2]), _ints([2]))


def _of_each(weights: ExpertWeights, bias: Weight) -> Node:
    """Return a bias `[experts, size]` as `[experts, 1, size]`, a constant."""
    num_experts, size = bias.shape
    return weights.vector(replace(bias, shape=(num_experts, 1, size), values=bias.values[:, None]))


def _branched(x: Node, table: Node, experts: Experts, gating: Gating[Node], weights: ExpertWeights) -> Node:
    """Return the sum over the experts that some token has chosen, one branch after the other."""
    num_experts = experts.gate.shape[0]
    total = ops.broadcast(_float(0), ops.shape_of(x, "i32"))
    columns = ops.split(table, _int(1), num_experts)
    for index in range(num_experts):
        column = ops.reshape(columns.output(index), _ints([-1]), special_zero=False)
        rows = ops.reshape(ops.non_zero(column, "i32"), _ints([-1]), special_zero=False)
        is_chosen = ops.greater(ops.shape_of(rows, "i32"), _ints([0]))
        total = _branch(is_chosen, total, x, column, rows, _member(experts, index), gating, weights)
    return total


def _branch(
    is_chosen: Node,
    total: Node,
    x: Node,
    column: Node,
    rows: Node,
    expert: Experts,
    gating: Gating[Node],
    weights: ExpertWeights,
) -> Node:
    """Return the total with one expert's weighted outputs added to the rows that have chosen it."""
    hidden = expert.down.shape[0]
    shapes = ([-1, hidden], [-1, hidden], [-1], [-1])
    kinds = (ov.Type.f32, ov.Type.f32, ov.Type.f32, ov.Type.i32)
    inside, outside = ([ops.parameter(*each) for each in zip(shapes, kinds, strict=True)] for _ in range(2))
    sum_so_far, tokens, shares, chosen = inside
    mine = ops.gather(tokens, chosen, _int(0))
    gate, up = (
        _biased(_product(mine, weights.matrix(weight)), bias, weights)
        for weight, bias in ((expert.gate, expert.gate_bias), (expert.up, expert.up_bias))
    )
    outputs = _biased(_product(gating(gate, up), weights.matrix(expert.down)), expert.down_bias, weights)
    weighted = ops.multiply(outputs, ops.unsqueeze(ops.gather(shares, chosen, _int(0)), _int(1)))
    where = ops.broadcast(ops.unsqueeze(chosen, _int(1)), ops.shape_of(weighted, "i32"))
    added = ops.result(ops.scatter_elements_update(sum_so_far, where, weighted, _int(0), "sum"))
    same = ops.result(outside[0])
    branch = ops.if_op(is_chosen.output(0))
    branch.set_then_body(ov.Model([added], inside, "expert"))
    branch.set_else_body(ov.Model([same], outside[:1], "nobody's expert"))
    branch.set_input(total.output(0), inside[0], outside[0])
    for value, parameter in zip((x, column, rows), inside[1:], strict=True):
        branch.set_input(value.output(0), parameter, None)
    branch.set_output(added, same)
    return branch


def _member(experts: Experts, index: int) -> Experts:
    """Return one expert; its weights are views of those of the stack."""
    return Experts(*(weight and _slice(weight, index) for weight in vars(experts).values()))


def _slice(weight: Weight, index: int) -> Weight:
    return replace(
        weight,
        name=f"{weight.name} [{index}]",
        shape=weight.shape[1:],
        values=weight.values[index],
        scales=None if weight.scales is None else weight.scales[index],
        zero_points=None if weight.zero_points is None else weight.zero_points[index],
    )


def _product(x: Node, matrix: Node) -> Node:
    return ops.matmul(x, matrix, transpose_a=False, transpose_b=True)


def _biased(x: Node, bias: Weight | None, weights: ExpertWeights) -> Node:
    return x if bias is None else ops.add(x, weights.vector(bias))


def _ints(values: list[int]) -> Node:
    return ops.constant(np.array(values, np.int32))


def _int(value: int) -> Node:
    return ops.constant(np.array(value, np.int32))


def _float(value: float) -> Node:
    return ops.constant(np.array(value, np.float32))
