"""The unary front: the ensemble's steps for clients whose protocol knows one answer per request.

Triton refuses `infer` (HTTP and gRPC alike) for a model that may stream, and an ensemble that holds the core is such a
model. This model walks the same steps and answers once.

Owns the requests in flight through it, with a thread for each. Never tokenizes, never generates, never streams.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import triton_python_backend_utils as pb_utils

from trident_ensemble.contract import tensors
from trident_ensemble.contract.errors import (
    QueueFullError,
    RequestError,
    TridentError,
    read_wire_message,
    wire_message,
)
from trident_ensemble.contract.failures import internal_error, log_failure
from trident_ensemble.contract.layout import ModelNames
from trident_ensemble.contract.settings import UnarySettings, parse_parameters
from trident_ensemble.contract.tensors import TensorSpec
from trident_ensemble.wiring import Step, ensemble_steps

_FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL


class TritonPythonModel:
    """The ensemble's steps as a model that answers each request once."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Make room for the requests in flight."""
        parameters = json.loads(args["model_config"])["parameters"]
        self._settings = parse_parameters(UnarySettings, parameters)
        self._names = ModelNames(self._settings.ensemble)
        self._places = threading.Semaphore(self._settings.max_concurrent_requests)
        # One more thread for requests that only stop others: they must get through when all places are taken.
        self._pool = ThreadPoolExecutor(self._settings.max_concurrent_requests + 1, "trident-unary")

    def execute(self, requests: list[Any]) -> None:
        """Start each request on a thread of its own; answers come through the response senders."""
        for request in requests:
            try:
                self._start(request, request.get_response_sender())
            except BaseException as error:  # whatever it is, the other requests must be served
                log_failure("a request could not be answered", error)

    def finalize(self) -> None:
        """Wait for the requests in flight."""
        self._pool.shutdown()

    def _start(self, request: Any, sender: Any) -> None:
        try:
            inputs = {tensor.name(): tensor for tensor in request.inputs()}
            parameters = json.loads(request.parameters() or "{}")
            takes_place = not _flag(inputs, tensors.STOP)
            if takes_place:
                self._take_place()
            try:
                arguments = sender, inputs, request.request_id(), parameters
                self._pool.submit(self._serve, *arguments, takes_place=takes_place)
            except BaseException:
                if takes_place:
                    self._places.release()
                raise
        except TridentError as error:
            sender.send(_failure(error), flags=_FINAL)
        except BaseException as error:
            sender.send(_failure(internal_error("the request could not be taken", error)), flags=_FINAL)

    def _take_place(self) -> None:
        if not self._places.acquire(blocking=False):
            limit = self._settings.max_concurrent_requests
            raise QueueFullError(f"max_concurrent_requests {limit} are in flight")

    def _serve(
        self, sender: Any, values: dict[str, Any], request_id: str, parameters: dict[str, Any], *, takes_place: bool
    ) -> None:
        try:
            response = _walk(self._names, values, request_id, parameters)
        except TridentError as error:
            response = _failure(error)
        except BaseException as error:
            response = _failure(internal_error("the request failed", error))
        if takes_place:
            self._places.release()
        try:
            sender.send(response, flags=_FINAL)
        except BaseException as error:
            _send_last(sender, internal_error("the answer could not be sent", error))


def _send_last(sender: Any, error: TridentError) -> None:
    """Tell a client that its answer could not be sent, if even that is possible."""
    try:
        sender.send(_failure(error), flags=_FINAL)
    except BaseException as cause:
        log_failure("a client could not be told of its request's end", cause)


def _walk(names: ModelNames, values: dict[str, Any], request_id: str, parameters: dict[str, Any]) -> Any:
    if _flag(values, tensors.STREAM):
        raise RequestError(tensors.STREAM.name, f"this model answers once; send streams to {names.ensemble!r}")
    for step in ensemble_steps(names):
        may_stream = step.model == names.core
        response = _call(step, values, request_id, parameters, may_stream=may_stream)
        if response.has_error():
            return _refusal(response.error().message())
        values |= {tensor.name(): tensor for tensor in response.output_tensors()}
    outputs = [values[spec.name] for spec in tensors.ENSEMBLE_OUTPUTS if spec.name in values]
    return pb_utils.InferenceResponse(outputs)


def _call(step: Step, values: dict[str, Any], request_id: str, parameters: dict[str, Any], *, may_stream: bool) -> Any:
    request = pb_utils.InferenceRequest(
        model_name=step.model,
        requested_output_names=[spec.name for spec in step.outputs],
        inputs=[values[spec.name] for spec in step.inputs if spec.name in values],
        request_id=request_id,
        parameters=parameters,
    )
    if not may_stream:
        return request.exec()
    # The core's last response may be followed by an empty one that only says so.
    answers = [answer for answer in request.exec(decoupled=True) if answer.has_error() or answer.output_tensors()]
    if not answers:
        raise TridentError("the core gave no answer")
    return answers[-1]


def _flag(values: Mapping[str, Any], spec: TensorSpec) -> bool:
    tensor = values.get(spec.name)
    return tensor is not None and bool(tensor.as_numpy().any())


def _failure(error: TridentError) -> Any:
    return _refusal(wire_message(error))


def _refusal(message: str) -> Any:
    code = getattr(pb_utils.TritonError, read_wire_message(message).code)
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, code))
