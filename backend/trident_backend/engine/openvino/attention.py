"""Paged attention in an OpenVINO network.

OpenVINO's file format cannot hold the paged attention operation. So a network on disk has a hole for each layer:
results `query.i`, `key.i`, `value.i` and an input `attended.i`, and beside them what kind of attention belongs there.
Loading fills the holes.

Owns both halves, the hole and its filling, and the inputs that only attention needs. Knows no model.
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
        num_kv_heads: heads of keys and values.
        head_dim: size of a head.
        scale: factor on query times key.
        sliding_window: tokens that a token sees, itself included; 0 is all.
    """

    num_kv_heads: int
    head_dim: int
    scale: float
    sliding_window: int


@dataclass(frozen=True)
class Hole:
    """Where one layer's attention will be: three results and the input that stands for its output."""

    results: tuple[Node, Node, Node]
    attended: Node
    attention: LayerAttention


def dig(layer: int, query: Node, key: Node, value: Node, attention: LayerAttention) -> Hole:
    """Leave out the attention of `query [T, heads * head_dim]` over `key`, `value [T, kv_heads * head_dim]`."""
    width = query.output(0).get_partial_shape()[1].get_length()
    nodes = ((names.QUERY, query), (names.KEY, key), (names.VALUE, value))
    results = tuple(_named_result(node, f"{name}.{layer}") for name, node in nodes)
    attended = _parameter(f"{names.ATTENTION_OUTPUT}.{layer}", [-1, width], ov.Type.f32)
    return Hole((results[0], results[1], results[2]), attended, attention)


def describe(model: Any, holes: list[Hole]) -> None:
    """Write down in the model what belongs into its holes."""
    model.set_rt_info(json.dumps([asdict(hole.attention) for hole in holes]), _INFORMATION)


def fill(model: Any) -> None:
    """Put paged attention into every hole of a network.

    Raises:
        ArtifactError: the network has none, or not those that it describes.
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
            hole = ports[f"{names.ATTENTION_OUTPUT}.{index}"]
            hole.output(0).replace(attended.output(0))
            model.remove_parameter(hole)
            model.add_parameters(caches)
            for result in results:
                model.remove_result(result)
        model.validate_nodes_and_infer_types()
    except (RuntimeError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"the network's attention is not what this version writes: {error}; build again") from None


def _paged_attention(leading: list[Node], context: Node, attention: LayerAttention) -> Node:
    """The operation's 28 inputs: query, key, value, two caches, four index vectors, then those below."""
    no_ints, no_floats = _constant([], np.int32), _constant([], np.float32)
    zero = _constant(0, np.int32)
    inputs = [
        *leading,
        _constant(attention.scale, np.float32),
        _constant(attention.sliding_window, np.int32),
        no_floats,  # alibi slopes
        context,
        no_ints,  # score aggregation window
        *(no_ints, no_ints, no_floats),  # cache rotation
        *(no_floats, zero, zero),  # sparse attention
        no_floats,  # sinks
        *(zero, no_ints, no_ints, no_ints),  # cache eviction
        no_ints,  # token types
        *(_constant([], np.uint8), no_ints),  # query-query bias
    ]
    node = _PagedAttentionExtension([value if isinstance(value, ov.Output) else value.output(0) for value in inputs])
    information = node.get_rt_info()
    information["num_k_heads"] = information["num_v_heads"] = attention.num_kv_heads
    information["k_head_size"] = information["v_head_size"] = attention.head_dim
    return node


def _named_result(node: Node, name: str) -> Node:
    node.output(0).get_tensor().add_names({name})
    return ops.result(node, name=name)


def _parameter(name: str, shape: list[int], kind: Any) -> Node:
    parameter = ops.parameter(shape, kind, name)
    parameter.output(0).get_tensor().set_names({name})
    return parameter


def _constant(value: float | list[int], kind: Any) -> Node:
    return ops.constant(np.array(value, kind))
