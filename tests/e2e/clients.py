"""Real clients of a running server, each as its users write it."""

from __future__ import annotations

import json
import queue
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tritonclient.grpc as grpcclient
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

NUMPY_TYPES: dict[str, Any] = {
    "text_input": np.object_,
    "messages": np.object_,
    "max_tokens": np.int32,
    "stream": np.bool_,
    "temperature": np.float32,
    "top_k": np.int32,
    "top_p": np.float32,
    "seed": np.uint64,
    "end_id": np.int32,
    "ignore_eos": np.bool_,
    "tenant": np.object_,
    "cache_salt": np.object_,
    "reuse_cache": np.bool_,
}


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

    def add(self, result: Any) -> None:
        self.text += result.as_numpy("text_output").reshape(-1)[0].decode()
        self.output_ids += result.as_numpy("output_ids").reshape(-1).tolist()
        self.num_chunks += 1
        if result.as_numpy("finish_reason") is None:
            return
        self.finish_reason = result.as_numpy("finish_reason").reshape(-1)[0].decode()
        self.num_finals += 1
        self.num_input_tokens = int(result.as_numpy("num_input_tokens").reshape(-1)[0])
        self.num_output_tokens = int(result.as_numpy("num_output_tokens").reshape(-1)[0])


def make_inputs(module: Any, fields: dict[str, Any]) -> list[Any]:
    """Tensors of shape [1, 1] for either of tritonclient's protocols."""
    inputs = []
    for name, value in fields.items():
        array = np.array([[value]], NUMPY_TYPES.get(name, np.int32))
        if array.dtype == np.object_:
            array = np.array([[value if isinstance(value, bytes) else value.encode()]], np.object_)
        tensor = module.InferInput(name, [1, 1], np_to_triton_dtype(array.dtype))
        tensor.set_data_from_numpy(array)
        inputs.append(tensor)
    return inputs


@contextmanager
def grpc_stream(url: str, inputs: list[Any], model: str = "ensemble") -> Iterator[Iterator[Any]]:
    """An open gRPC stream: its results as they come; leaving the block cancels what is left of it.

    Raises:
        InferenceServerException: when the server answers with an error.
    """
    results: queue.Queue[tuple[Any, InferenceServerException | None]] = queue.Queue()
    client = grpcclient.InferenceServerClient(url)
    client.start_stream(callback=lambda result, error: results.put((result, error)))

    def read() -> Iterator[Any]:
        client.async_stream_infer(model, inputs, enable_empty_final_response=True)
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
