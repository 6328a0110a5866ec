"""A mixture of experts in OpenVINO: the two forms in which the experts that tokens have chosen are computed.

Owns both forms, and the choice between them. Few experts are branched: each lies in a branch of its own,
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

from trident_compiler.families.words import Experts, Gating
from trident_compiler.weights.formats import BF16
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


def mixture(x: Node, table: Node, experts: Experts, gating: Gating[Node], weights: ExpertWeights) -> Node:
    """Return the weighted sum of the outputs of each token's experts, `[T, 1, hidden]`.

    Args:
        x: `[T, 1, hidden]`.
        table: the weight of each expert for each token, `[T, experts]`, as `route` makes it.
        experts: the weights of their feed-forwards.
        gating: makes the input of the down projection.
        weights: makes constants of weights.
    """
    hidden = experts.down.shape[1]
    flat = ops.reshape(x, _ints([-1, hidden]), special_zero=False)
    form = _gathered if is_gathered(experts, gating) else _branched
    return ops.reshape(form(flat, table, experts, gating, weights), _ints([-1, 1, hidden]), special_zero=False)


def is_gathered(experts: Experts, gating: Gating[Node]) -> bool:
    """Return whether experts are computed by gathered products; otherwise they are branched.

    Weights in bfloat16 are those of a computation in float32, for which gathered products would keep them twice as
    float32, four times their size, and are hardly faster.
    """
    if experts.gate.shape[0] <= MOST_BRANCHED or experts.gate.format == BF16:
        return False
    gate, up = ops.parameter([-1, 1], np.float32), ops.parameter([-1, 1], np.float32)
    gate.set_friendly_name("gate")
    up.set_friendly_name("up")
    return _expression(gating(gate, up)) == (_SWISH if experts.gate_bias is None else _CLAMPED_SWISH)


def _expression(node: Node) -> str:
    kind = node.get_type_name()
    if kind in {"Parameter", "Constant"}:
        return str(node.get_friendly_name()) if kind == "Parameter" else "number"
    inputs = (_expression(node.input_value(index).get_node()) for index in range(node.get_input_size()))
    return f"{kind}({','.join(sorted(inputs))})"


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
        total = _branch(total, (x, column, rows), _member(experts, index), gating, weights)
    return total


def _branch(
    total: Node, inputs: tuple[Node, Node, Node], expert: Experts, gating: Gating[Node], weights: ExpertWeights
) -> Node:
    """Return the total with one expert's weighted outputs added to the rows that have chosen it.

    Args:
        total: `[T, hidden]`.
        inputs: the tokens `[T, hidden]`, the expert's weight for each of them `[T]`, and the numbers of those rows.
        expert: its weights.
        gating: makes the input of the down projection.
        weights: makes constants of weights.
    """
    hidden = expert.down.shape[0]
    kinds = (([-1, hidden], ov.Type.f32), ([-1, hidden], ov.Type.f32), ([-1], ov.Type.f32), ([-1], ov.Type.i32))
    sum_so_far, tokens, shares, chosen = inside = [ops.parameter(*kind) for kind in kinds]
    mine = ops.gather(tokens, chosen, _int(0))
    gate, up = (
        _biased(_product(mine, weights.matrix(weight)), bias, weights)
        for weight, bias in ((expert.gate, expert.gate_bias), (expert.up, expert.up_bias))
    )
    outputs = _biased(_product(gating(gate, up), weights.matrix(expert.down)), expert.down_bias, weights)
    weighted = ops.multiply(outputs, ops.unsqueeze(ops.gather(shares, chosen, _int(0)), _int(1)))
    where = ops.broadcast(ops.unsqueeze(chosen, _int(1)), ops.shape_of(weighted, "i32"))
    added = ops.result(ops.scatter_elements_update(sum_so_far, where, weighted, _int(0), "sum"))
    unchanged = ops.parameter(*kinds[0])
    same = ops.result(unchanged)
    branch = ops.if_op(ops.greater(ops.shape_of(inputs[2], "i32"), _ints([0])).output(0))
    branch.set_then_body(ov.Model([added], inside, "expert"))
    branch.set_else_body(ov.Model([same], [unchanged], "nobody's expert"))
    branch.set_input(total.output(0), sum_so_far, unchanged)
    for value, parameter in zip(inputs, inside[1:], strict=True):
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
