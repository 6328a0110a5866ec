"""Real clients of a running server, each as its users write it."""

from __future__ import annotations

import json
import queue
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tritonclient.grpc as grpcclient
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from trident_ensemble.contract import tensors

_NUMPY_TYPES: dict[str, Any] = {
    "STRING": np.object_,
    "BOOL": np.bool_,
    "INT32": np.int32,
    "UINT64": np.uint64,
    "FP32": np.float32,
}
_DTYPES = {spec.name: spec.dtype for spec in (*tensors.CORE_INPUTS, *tensors.ENSEMBLE_INPUTS)}


@dataclass
class Answer:
    """What one stream brought."""

    text: str = ""
    output_ids: list[int] = field(default_factory=list)
    num_chunks: int = 0
    num_finals: int = 0
    finish_reason: str = ""
    num_input_tokens: int = 0
    num_output_tokens: int = 0
    results: list[Any] = field(default_factory=list)

    @property
    def last(self) -> Callable[[str], Any]:
        """Gives an output of the last response as numpy has it; None if it was left out."""
        output: Callable[[str], Any] = self.results[-1].as_numpy
        return output

    def joined(self, name: str) -> list[Any]:
        """An output of all responses that have it, flat, one after another."""
        arrays = [result.as_numpy(name) for result in self.results]
        return [value for array in arrays if array is not None for value in array.reshape(-1).tolist()]

    def add(self, result: Any) -> None:
        self.text += result.as_numpy("text_output").reshape(-1)[0].decode()
        self.output_ids += result.as_numpy("output_ids").reshape(-1).tolist()
        self.num_chunks += 1
        self.results.append(result)
        if result.as_numpy("finish_reason") is None:
            return
        self.finish_reason = result.as_numpy("finish_reason").reshape(-1)[0].decode()
        self.num_finals += 1
        self.num_input_tokens = int(result.as_numpy("num_input_tokens").reshape(-1)[0])
        self.num_output_tokens = int(result.as_numpy("num_output_tokens").reshape(-1)[0])


def make_inputs(module: Any, fields: dict[str, Any]) -> list[Any]:
    """Tensors of shape [1, 1], of lists [1, n], for either of tritonclient's protocols."""
    inputs = []
    for name, value in fields.items():
        values = value if isinstance(value, list) else [value]
        if _DTYPES.get(name) == "STRING":
            values = [item.encode() if isinstance(item, str) else item for item in values]
        array = np.array([values], _NUMPY_TYPES[_DTYPES.get(name, "INT32")])
        tensor = module.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
        tensor.set_data_from_numpy(array)
        inputs.append(tensor)
    return inputs


@contextmanager
def grpc_stream(url: str, inputs: list[Any], model: str = "ensemble", request_id: str = "") -> Iterator[Iterator[Any]]:
    """An open gRPC stream: its results as they come; leaving the block cancels what is left of it.

    Raises:
        InferenceServerException: when the server answers with an error.
    """
    results: queue.Queue[tuple[Any, InferenceServerException | None]] = queue.Queue()
    client = grpcclient.InferenceServerClient(url)
    client.start_stream(callback=lambda result, error: results.put((result, error)))

    def read() -> Iterator[Any]:
        client.async_stream_infer(model, inputs, request_id=request_id, enable_empty_final_response=True)
        while True:
            result, error = results.get(timeout=120)
            if error is not None:
                raise error
            response = result.get_response()
            if response.outputs:
                yield result
            if response.parameters["triton_final_response"].bool_param:
                return

    try:
        yield read()
    finally:
        client.stop_stream(cancel_requests=True)
        client.close()


def ask_grpc(url: str, model: str = "ensemble", **fields: Any) -> Answer:
    """One request over gRPC streaming, read to its end."""
    answer = Answer()
    with grpc_stream(url, make_inputs(grpcclient, fields), model) as results:
        for result in results:
            answer.add(result)
    return answer


def events(body: str) -> list[dict[str, Any]]:
    """The JSON of each server-sent event of generate_stream."""
    return [json.loads(line[5:]) for line in body.splitlines() if line.startswith("data:")]
