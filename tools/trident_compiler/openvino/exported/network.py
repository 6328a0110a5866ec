"""An exported network, turned into one of Trident's.

An exporter writes a stateful network: its keys and values are variables, and its attention is the operation
ScaledDotProductAttention. OpenVINO makes paged attention of both. What it makes is cut out again, as the networks of
families have it cut out, because OpenVINO's file format cannot hold it: from then on the network is like any other.

Owns that conversion and the refusal of what it cannot convert. Never compiles the network, and never reads its files'
bytes; `exported_files` has checked those.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import openvino as ov
from openvino import opset15 as ops
from openvino._offline_transformations import paged_attention_transformation

from trident_backend.engine.openvino import attention as openvino_attention
from trident_backend.engine.openvino import names
from trident_compiler.checkpoint import exported_files
from trident_compiler.openvino.lowering import Network
from trident_ensemble.contract.errors import CheckpointError

Node = Any  # openvino's Python classes come without usable types

_ATTENTION = "PagedAttentionExtension"
#: Inputs of the paged attention operation, by number; those that no export has are empty, or 0.
_QUERY, _KEY, _VALUE, _SCALE, _WINDOW, _ALIBI, _SINKS = 0, 1, 2, 9, 10, 11, 20
#: The operations that may follow the last product of a network, each on every logit by itself.
_ELEMENTWISE = ("Add", "Convert", "Divide", "Multiply", "Reshape", "Tanh", "Transpose")
#: The operations through which positions may pass before a network takes their largest.
_RESHAPING = ("Convert", "Reshape", "Squeeze", "Unsqueeze")
#: What the operation reads of the step; nothing else of the network may.
_STEP_INPUTS = (*names.ATTENTION_VECTORS, names.MAX_CONTEXT_LEN)


@dataclass(frozen=True)
class ExportedNetwork:
    """A network with placeholders for its attention.

    Args:
        network: to be written, or compiled once.
        layers: the attention of each, in order.
    """

    network: Network
    layers: tuple[openvino_attention.LayerAttention, ...]


def read_exported(folder: Path) -> Any:
    """Return the network as it was exported, an `openvino.Model`; its constants are mapped from the file.

    Raises:
        CheckpointError: OpenVINO cannot read it.
    """
    try:
        return ov.Core().read_model(folder / exported_files.NETWORK_FILE, folder / exported_files.WEIGHTS_FILE)
    except RuntimeError as error:
        raise _refuse(f"OpenVINO {ov.__version__} cannot read it: {error}") from None


def convert_exported(folder: Path, max_seq_len: int) -> ExportedNetwork:
    """Return the network of a folder with placeholders for its attention.

    Args:
        folder: of the exported model.
        max_seq_len: the longest sequence, in tokens, that the network is for. A network that rotates by other
            frequencies where a position is beyond some bound rotates all sequences as it would the longest: the
            positions of a step are those of several sequences, and a cache keeps what was rotated before.

    Raises:
        CheckpointError: OpenVINO cannot read it, or cannot make paged attention of it; says why.
    """
    model = read_exported(folder)
    try:
        paged_attention_transformation(model)
    except RuntimeError as error:
        raise _refuse(f"OpenVINO {ov.__version__} cannot make paged attention of it: {error}") from None
    inputs = {name: port.get_node() for port in model.inputs for name in port.get_names()}
    parameters = [
        _replace_input(inputs, "input_ids", names.TOKEN_IDS),
        _replace_input(inputs, "position_ids", names.POSITION_IDS),
    ]
    _settle_longest(parameters[1], max_seq_len)
    rows = _parameter(names.LOGIT_ROWS)
    logits = _select_rows(model, rows)
    layers, placeholders = [], []
    for index, operation in enumerate(_attentions(model, inputs)):
        attention = _layer_attention(operation, index)
        sizes = (
            attention.num_heads * attention.head_dim,
            attention.num_kv_heads * attention.head_dim,
            attention.num_kv_heads * attention.v_head_dim,
        )
        query, key, value = (
            ops.reshape(operation.input_value(number), _ints([-1, size]), special_zero=False)
            for number, size in zip((_QUERY, _KEY, _VALUE), sizes, strict=True)
        )
        placeholder = openvino_attention.cut(index, query, key, value, attention)
        _rewire(operation, placeholder.output)
        placeholders.append(placeholder)
        layers.append(attention)
    for name in _STEP_INPUTS:
        users = {target.get_node().get_type_name() for target in inputs[name].output(0).get_target_inputs()}
        if users - {_ATTENTION}:
            raise _refuse(f"it computes with {name} beside attention, which differs between the sequences of a step")
    results = [ops.result(logits), *(result for each in placeholders for result in each.results)]
    cut = ov.Model(results, [*parameters, rows, *(each.output for each in placeholders)], "trident")
    openvino_attention.describe(cut, placeholders)
    return ExportedNetwork(Network(cut, ()), tuple(layers))


def _attentions(model: Any, inputs: dict[str, Node]) -> list[Node]:
    """Return the attention of each layer, by the number of its cache."""
    found = {
        operation.input_value(3).get_node().get_friendly_name(): operation
        for operation in model.get_ops()
        if operation.get_type_name() == _ATTENTION
    }
    unconverted = [each for each in model.get_ops() if each.get_type_name() == "ScaledDotProductAttention"]
    if unconverted or not found:
        which = unconverted[0].get_friendly_name() if unconverted else "all of them"
        raise _refuse(f"OpenVINO {ov.__version__} cannot make paged attention of its attention ({which})")
    ordered = [found.pop(names.caches(index)[0], None) for index in range(len(found))]
    assert all(ordered), "caches are numbered from 0"
    known = {"input_ids", "position_ids", *_STEP_INPUTS}
    caches = {name for index in range(len(ordered)) for name in names.caches(index)}
    if unknown := set(inputs) - known - caches:
        raise _refuse(f"its input {min(unknown)} is not one that a server has")
    return ordered


def _query_size(operation: Node) -> int:
    """Return the features of all query heads: the operation's own input may have lost how many they are."""
    heads = operation.input_value(_QUERY).get_node().input_value(0).get_partial_shape()
    if len(heads) != 4 or heads[2].is_dynamic or heads[3].is_dynamic:
        raise _refuse(f"the heads of the queries of {operation.get_friendly_name()} are not known before a step")
    return int(heads[2].get_length() * heads[3].get_length())


def _layer_attention(operation: Node, layer: int) -> openvino_attention.LayerAttention:
    """Read a layer's attention off the operation."""
    information = operation.get_rt_info()
    num_kv_heads, head_dim, v_head_dim = (
        int(information[key].value) for key in ("num_k_heads", "k_head_size", "v_head_size")
    )
    alibi, sinks = (_evaluate(operation, number).reshape(-1) for number in (_ALIBI, _SINKS))
    window = int(_evaluate(operation, _WINDOW).item())
    if window and alibi.size:
        raise _refuse(f"layer {layer} has ALiBi and a sliding window, which OpenVINO {ov.__version__} cannot compute")
    return openvino_attention.LayerAttention(
        _query_size(operation) // head_dim,
        num_kv_heads,
        head_dim,
        v_head_dim,
        float(_evaluate(operation, _SCALE).item()),
        window,
        alibi_slopes=tuple(float(slope) for slope in alibi),
        sinks=tuple(float(sink) for sink in sinks),
    )


def _evaluate(operation: Node, number: int) -> npt.NDArray[Any]:
    """Return the value of an input that depends on constants alone."""
    source = operation.input_value(number)
    try:
        compiled = ov.Core().compile_model(
            ov.Model([ops.result(source)], []), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
        )
    except RuntimeError:
        raise _refuse(f"input {number} of {operation.get_friendly_name()} is no constant") from None
    value: npt.NDArray[Any] = np.array(compiled.create_infer_request().infer()[0])
    return value


def _replace_input(inputs: dict[str, Node], exported: str, name: str) -> Node:
    """Put an input of int32 in the place of an exported one, and return it."""
    old = inputs[exported]
    new = _parameter(name)
    _rewire(old, ops.convert(new, old.get_element_type()))
    return new


def _rewire(old: Node, new: Node) -> None:
    """Let whatever uses a node use another; names stay where they are, as a server knows inputs and outputs by them."""
    for user in old.output(0).get_target_inputs():
        user.replace_source_output(new.output(0))


def _settle_longest(positions: Node, max_seq_len: int) -> None:
    """Put the last position of the longest sequence in the place of a step's largest position."""
    reached = [positions]
    while reached:
        node = reached.pop()
        for user in [target.get_node() for target in node.output(0).get_target_inputs()]:
            kind = user.get_type_name()
            if kind == "ReduceMax":
                longest = ops.constant(np.array(max_seq_len - 1), user.get_element_type())
                shape = ops.constant([1] * len(user.get_output_partial_shape(0)), ov.Type.i64)
                _rewire(user, ops.reshape(longest, shape, special_zero=False))
            elif kind.startswith("Reduce"):
                raise _refuse(
                    f"{user.get_friendly_name()} reduces the positions of a step, which are of many sequences"
                )
            elif kind in _RESHAPING:
                reached.append(user)


def _select_rows(model: Any, rows: Node) -> Node:
    """Compute logits of the asked rows alone, and return them, `[R, vocab]` in float32.

    The rows are chosen before the last product, which is most of what a network does for a token's logits.
    """
    (result,) = model.outputs
    node = result.get_node().input_value(0).get_node()
    last = node
    while node.get_type_name() in _ELEMENTWISE:
        sources = [value.get_node() for value in node.input_values()]
        node = next((source for source in sources if source.get_type_name() in (*_ELEMENTWISE, "MatMul")), sources[0])
    if node.get_type_name() != "MatMul":
        raise _refuse(f"its logits come from {node.get_friendly_name()}, and not from a product with a table")
    chosen = ops.gather(node.input_value(0), rows, _ints(0))
    node.input(0).replace_source_output(chosen.output(0))
    width = _width(last.output(0))
    logits = ops.reshape(ops.convert(last, ov.Type.f32), _ints([-1, width]), special_zero=False)
    logits.output(0).get_tensor().set_names({names.LOGITS})
    return logits


def _parameter(name: str) -> Node:
    parameter = ops.parameter([-1], ov.Type.i32, name)
    parameter.output(0).get_tensor().set_names({name})
    return parameter


def _width(value: Node) -> int:
    """Return the size of the last axis, which is the same in every step."""
    shape = value.get_partial_shape()
    if shape[len(shape) - 1].is_dynamic:
        raise _refuse(f"the width of {value.get_node().get_friendly_name()} is not known before a step")
    return int(shape[len(shape) - 1].get_length())


def _ints(values: int | list[int]) -> Node:
    return ops.constant(np.array(values, np.int32))


def _refuse(problem: str) -> CheckpointError:
    return CheckpointError(f"{exported_files.NETWORK_FILE}: {problem}")
