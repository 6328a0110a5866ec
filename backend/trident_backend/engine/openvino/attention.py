"""Paged attention in an OpenVINO network.

OpenVINO's file format cannot hold the paged attention operation. So a network on disk has a placeholder for the
attention of each layer i: the results `query.i`, `key.i` and `value.i`, and the input `attended.i` for the attention's
output. The network's runtime information says which attention belongs there. Loading puts it in.

Owns both halves, cutting attention out of a network and inserting it, and the inputs that only attention needs. Never
knows a model.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import openvino as ov
from openvino import opset15 as ops
from openvino.op import _PagedAttentionExtension

from trident_backend.engine.openvino import names
from trident_ensemble.contract.errors import ArtifactError

_INFORMATION = "trident_attention"

Node = Any  # openvino's Python classes come without usable types


@dataclass(frozen=True)
class LayerAttention:
    """The attention of one layer.

    Args:
        num_heads: query heads.
        num_kv_heads: heads of keys and values.
        head_dim: size of a head of queries and keys.
        v_head_dim: size of a head of values.
        scale: factor on the products of query and key.
        sliding_window: how many tokens a token attends to, itself included; 0 for all.
        alibi_slopes: of each query head: a score gets slope times (position of the key - position of the query); empty
            for none. The operation drops them where there is a window as well.
        sinks: of each query head: a score in the softmax that has no value; empty for none.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    v_head_dim: int
    scale: float
    sliding_window: int
    alibi_slopes: tuple[float, ...] = ()
    sinks: tuple[float, ...] = ()


@dataclass(frozen=True)
class AttentionPlaceholder:
    """The gap in a network into which one layer's attention will be inserted.

    Args:
        results: the network's results that hold query, key and value.
        output: the network's input that stands for the attention's output.
        attention: what will be inserted.
    """

    results: tuple[Node, Node, Node]
    output: Node
    attention: LayerAttention


def cut(layer: int, query: Node, key: Node, value: Node, attention: LayerAttention) -> AttentionPlaceholder:
    """Return a placeholder for one layer's attention, for a network that is built.

    Args:
        layer: its number, from 0.
        query: `[T, heads * head_dim]`.
        key: `[T, kv_heads * head_dim]`.
        value: `[T, kv_heads * v_head_dim]`.
        attention: what will be inserted.
    """
    width = attention.num_heads * attention.v_head_dim
    nodes = ((names.QUERY, query), (names.KEY, key), (names.VALUE, value))
    results = tuple(_named_result(node, f"{name}.{layer}") for name, node in nodes)
    attended = _parameter(f"{names.ATTENTION_OUTPUT}.{layer}", [-1, width], ov.Type.f32)
    return AttentionPlaceholder((results[0], results[1], results[2]), attended, attention)


def describe(model: Any, placeholders: list[AttentionPlaceholder]) -> None:
    """Store in a model's runtime information which attention belongs into its placeholders, in the order of layers."""
    model.set_rt_info(json.dumps([asdict(each.attention) for each in placeholders]), _INFORMATION)


def insert(model: Any) -> list[LayerAttention]:
    """Insert paged attention at every placeholder of a network, and return what was inserted, layer by layer.

    Raises:
        ArtifactError: the network has no placeholders, or not those that its runtime information describes.
    """
    try:
        layers = [LayerAttention(**layer) for layer in json.loads(model.get_rt_info(_INFORMATION).astype(str))]
        ports = {port.get_any_name(): port.get_node() for port in (*model.inputs, *model.outputs)}
        shared = [_parameter(name, [-1], ov.Type.i32) for name in names.ATTENTION_VECTORS]
        context = _parameter(names.MAX_CONTEXT_LEN, [], ov.Type.i32)
        model.add_parameters([*shared, context])
        for index, attention in enumerate(layers):
            results = [ports[f"{name}.{index}"] for name in (names.QUERY, names.KEY, names.VALUE)]
            caches = [_parameter(name, [-1] * 4, ov.Type.dynamic) for name in names.caches(index)]
            sources = [result.input_value(0) for result in results]
            attended = _paged_attention([*sources, *caches, *shared], context, attention)
            placeholder = ports[f"{names.ATTENTION_OUTPUT}.{index}"]
            placeholder.output(0).replace(attended.output(0))
            model.remove_parameter(placeholder)
            model.add_parameters(caches)
            for result in results:
                model.remove_result(result)
        model.validate_nodes_and_infer_types()
    except (RuntimeError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"the network's attention is not what this version writes: {error}; build again") from None
    return layers


def _paged_attention(leading: list[Node], context: Node, attention: LayerAttention) -> Node:
    """Return the operation, which has 28 inputs: query, key, value, two caches, four index vectors, and those below."""
    no_ints, no_floats = _constant([], np.int32), _constant([], np.float32)
    zero = _constant(0, np.int32)
    sinks = np.array(attention.sinks, np.float32).reshape(1, -1, 1, 1)
    inputs = [
        *leading,
        _constant(attention.scale, np.float32),
        _constant(attention.sliding_window, np.int32),
        _constant(list(attention.alibi_slopes), np.float32),
        context,
        no_ints,  # score aggregation window
        *(no_ints, no_ints, no_floats),  # cache rotation
        *(no_floats, zero, zero),  # sparse attention
        ops.constant(sinks) if attention.sinks else no_floats,
        *(zero, no_ints, no_ints, no_ints),  # cache eviction
        no_ints,  # token types
        *(_constant([], np.uint8), no_ints),  # query-query bias
    ]
    node = _PagedAttentionExtension([value if isinstance(value, ov.Output) else value.output(0) for value in inputs])
    information = node.get_rt_info()
    information["num_k_heads"] = information["num_v_heads"] = attention.num_kv_heads
    information["k_head_size"], information["v_head_size"] = attention.head_dim, attention.v_head_dim
    return node


def _named_result(node: Node, name: str) -> Node:
    node.output(0).get_tensor().add_names({name})
    return ops.result(node, name=name)


def _parameter(name: str, shape: list[int], kind: Any) -> Node:
    parameter = ops.parameter(shape, kind, name)
    parameter.output(0).get_tensor().set_names({name})
    return parameter


def _constant(value: float | list[int] | list[float], kind: Any) -> Node:
    return ops.constant(np.array(value, kind))
