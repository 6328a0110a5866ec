"""The vocabulary's kernels, compiled by OpenVINO.

Owns three small compiled graphs, which read the logits where they are. Never samples and never copies the logits.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import openvino as ov
from openvino import opset13 as op

from trident_backend.engine.protocol import CHUNK_WIDTH, FloatArray, Int32Array

#: Rows computed at a time: the graphs' intermediate results stay in the caches, and their memory stays small.
_ROWS = 16
_PROPERTIES = {"PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": "1", "INFERENCE_PRECISION_HINT": "f32"}


class OpenVINOKernels:
    """Kernels that use all cores that OpenVINO does; used by one thread at a time.

    Args:
        vocab_size: width of the rows.
    """

    def __init__(self, vocab_size: int) -> None:
        self._exp_sums = _compile(_exp_sums_graph(vocab_size, with_floors=False))
        self._exp_sums_above = _compile(_exp_sums_graph(vocab_size, with_floors=True))
        self._top_k = _compile(_top_k_graph(vocab_size))

    def chunk_exp_sums(
        self, logits: FloatArray, maxima: FloatArray, inverse_temperatures: FloatArray, floors: FloatArray | None = None
    ) -> FloatArray:
        """Sum the weights over each chunk of the vocabulary, 16 rows at a time."""
        columns = [np.ascontiguousarray(column[:, None]) for column in (maxima, inverse_temperatures)]
        if floors is not None:
            columns.append(np.ascontiguousarray(floors[:, None]))
        sums: FloatArray
        (sums,) = _run(self._exp_sums if floors is None else self._exp_sums_above, logits, *columns)
        return sums

    def top_k(self, logits: FloatArray, count: int) -> tuple[FloatArray, Int32Array]:
        """Find each row's largest logits and their token ids, 16 rows at a time."""
        values, ids = _run(self._top_k, logits, np.array(count, np.int64))
        return values, ids


def _run(request: Any, *arrays: Any) -> tuple[Any, ...]:
    """Return a graph's results for all rows of the arrays, a few rows at a time, each time with the scalars among them.

    The results are copies, as the request writes to the same memory each time.
    """
    parts = []
    for start in range(0, len(arrays[0]), _ROWS):
        for index, array in enumerate(arrays):
            part = array[start : start + _ROWS] if array.ndim else array
            request.set_input_tensor(index, ov.Tensor(part, shared_memory=True))
        request.infer()
        parts.append([tensor.data.copy() for tensor in request.output_tensors])
    return tuple(np.concatenate(results) for results in zip(*parts, strict=True))


def _compile(graph: Any) -> Any:
    return ov.Core().compile_model(graph, "CPU", _PROPERTIES).create_infer_request()


def _exp_sums_graph(vocab_size: int, with_floors: bool) -> Any:
    logits = op.parameter([-1, vocab_size], np.float32)
    maxima, inverse_temperatures, floors = (op.parameter([-1, 1], np.float32) for _ in range(3))
    nothing = op.constant(np.float32(0))
    weights = op.exp(op.multiply(op.subtract(logits, maxima), inverse_temperatures))
    if with_floors:
        weights = op.select(op.greater_equal(logits, floors), weights, nothing)
    if missing := -vocab_size % CHUNK_WIDTH:
        weights = op.pad(weights, _integers(0, 0), _integers(0, missing), "constant", nothing)
    chunks = op.reshape(weights, _integers(-1, (vocab_size + missing) // CHUNK_WIDTH, CHUNK_WIDTH), False)
    inputs = [logits, maxima, inverse_temperatures, floors]
    return ov.Model([op.reduce_sum(chunks, _integers(2), False)], inputs if with_floors else inputs[:3])


def _top_k_graph(vocab_size: int) -> Any:
    logits, count = op.parameter([-1, vocab_size], np.float32), op.parameter([], np.int64)
    # Keeping equals in order would cost ten to a hundred times as much.
    top = op.topk(logits, count, 1, "max", "value", index_element_type="i32", stable=False)
    return ov.Model([top.output(0), top.output(1)], [logits, count])


def _integers(*values: int) -> Any:
    return op.constant(np.array(values, np.int64))
