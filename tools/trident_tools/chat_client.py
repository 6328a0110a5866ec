"""A client of a running server that streams one answer at a time over gRPC.

Owns the tensors of a request and the timing of an answer. Never prints, and never reads input.
"""

from __future__ import annotations

import json
import queue
import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import tritonclient.grpc as triton

from trident_ensemble.contract import tensors
from trident_ensemble.contract.errors import ServerError
from trident_ensemble.contract.tensors import TensorSpec
from trident_tools.load.tensor_values import tensor_of

_LIVE_TIMEOUT_S = 5.0


@dataclass
class ChatAnswer:
    """The course of an answer, filled in while its text arrives.

    Args:
        num_tokens: tokens that have been generated.
        first_token_s: seconds from the request to the first token; None before it.
        tokens_per_s: rate after the first response; None while only one has come.
        finish_reason: the reason why the answer ended; empty until it has.
    """

    num_tokens: int = 0
    first_token_s: float | None = None
    tokens_per_s: float | None = None
    finish_reason: str = ""


class ChatClient:
    """A client that asks one model of one server.

    Args:
        url: `host:port` of the server's gRPC.
        model: the name of one of Trident's ensembles.
        options: further optional inputs -> their values.

    Raises:
        ServerError: no server answers there, or the model is not served.
    """

    def __init__(self, url: str, model: str, options: Mapping[TensorSpec, object]) -> None:
        self._model = model
        self._options = dict(options)
        try:
            self._client = triton.InferenceServerClient(url)
            served = self._client.is_model_ready(model, client_timeout=_LIVE_TIMEOUT_S)
        except Exception as error:
            raise ServerError(
                f"no server answers at {url} ({_message(error)}); start one with `trident serve`"
            ) from None
        if not served:
            raise ServerError(f"{url} does not serve a model {model!r}")

    def ask(self, messages: Sequence[Mapping[str, str]], answer: ChatAnswer) -> Generator[str, None, None]:
        """Ask for the next answer of a conversation, and yield its text piece by piece.

        Leaving the iteration early cancels the answer.

        Raises:
            ServerError: the request failed; the message is the server's.
        """
        values = {tensors.MESSAGES: json.dumps(list(messages)), tensors.STREAM: True, **self._options}
        replies: queue.Queue[Any] = queue.Queue()
        began = time.perf_counter()
        try:
            self._client.start_stream(lambda result, error: replies.put(error if error is not None else result))
            self._client.async_stream_infer(self._model, [_input(spec, value) for spec, value in values.items()])
            first: tuple[float, int] | None = None
            while not answer.finish_reason:
                reply = replies.get()
                if isinstance(reply, Exception):
                    raise ServerError(_message(reply))
                now = time.perf_counter()
                answer.num_tokens += reply.as_numpy(tensors.OUTPUT_IDS.name).size
                finish_reason = reply.as_numpy(tensors.FINISH_REASON.name)
                answer.finish_reason = "" if finish_reason is None else finish_reason.item().decode()
                if first is None:
                    first = now, answer.num_tokens
                    answer.first_token_s = now - began
                elif answer.num_tokens > first[1]:
                    answer.tokens_per_s = (answer.num_tokens - first[1]) / (now - first[0])
                yield reply.as_numpy(tensors.TEXT_OUTPUT.name).item().decode("utf-8", "replace")
        finally:
            self._client.stop_stream(cancel_requests=not answer.finish_reason)

    def close(self) -> None:
        """Close the connection."""
        self._client.close()


def _input(spec: TensorSpec, value: object) -> Any:
    dtype = "BYTES" if spec.dtype == "STRING" else spec.dtype
    array = tensor_of(dtype, value)
    tensor = triton.InferInput(spec.name, array.shape, dtype)
    tensor.set_data_from_numpy(array)
    return tensor


def _message(error: BaseException) -> str:
    """Return the message of an error as one line."""
    text = error.message() if hasattr(error, "message") else str(error)
    return " ".join(str(text).split()) or type(error).__name__
