"""A stand-in for `triton_python_backend_utils`, which exists only inside Triton's Python backend.

Behaves as the real one (2.51) where Trident's shells can tell, and fails where the real one crashes the server.
"""

from __future__ import annotations

import importlib
import itertools
import json
import sys
import threading
import weakref
from collections.abc import Callable, Iterable, Mapping
from enum import IntEnum
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

TRITONSERVER_RESPONSE_COMPLETE_FINAL = 1


class ErrorCode(IntEnum):
    """`TRITONSERVER_Error_Code`."""

    UNKNOWN = 0
    INTERNAL = 1
    NOT_FOUND = 2
    INVALID_ARG = 3
    UNAVAILABLE = 4
    UNSUPPORTED = 5
    ALREADY_EXISTS = 6
    CANCELLED = 7


class TritonModelException(Exception):  # noqa: N818 (Triton's name)
    """What the real module raises."""


class TritonError:
    """An error with its code."""

    UNKNOWN = ErrorCode.UNKNOWN
    INTERNAL = ErrorCode.INTERNAL
    NOT_FOUND = ErrorCode.NOT_FOUND
    INVALID_ARG = ErrorCode.INVALID_ARG
    UNAVAILABLE = ErrorCode.UNAVAILABLE
    UNSUPPORTED = ErrorCode.UNSUPPORTED
    ALREADY_EXISTS = ErrorCode.ALREADY_EXISTS
    CANCELLED = ErrorCode.CANCELLED

    def __init__(self, message: str, code: ErrorCode = ErrorCode.INTERNAL) -> None:
        if not isinstance(message, str) or not isinstance(code, ErrorCode):
            raise TypeError("incompatible constructor arguments")
        self._message, self._code = message, code

    def message(self) -> str:
        return self._message

    def code(self) -> ErrorCode:
        return self._code


class Tensor:
    """A named array; texts are `object` arrays of bytes, and come out as bytes whatever went in."""

    def __init__(self, name: str, array: npt.NDArray[Any]) -> None:
        if not isinstance(array, np.ndarray) or array.dtype.kind not in "biufOS":
            raise TritonModelException("Tensor dtype used for numpy_to_triton_type is not supported.")
        if array.dtype.kind in "OS":
            flat = [item if isinstance(item, bytes) else str(item).encode() for item in array.ravel()]
            encoded = np.empty(len(flat), np.object_)
            encoded[:] = flat
            array = encoded.reshape(array.shape)
        self._name, self._array = name, np.ascontiguousarray(array)

    def name(self) -> str:
        return self._name

    def as_numpy(self) -> npt.NDArray[Any]:
        return self._array


class InferenceResponse:
    """Outputs, or an error."""

    def __init__(self, output_tensors: Iterable[Tensor] = (), error: TritonError | None = None) -> None:
        self._outputs, self._error = list(output_tensors), error

    def output_tensors(self) -> list[Tensor]:
        return self._outputs

    def has_error(self) -> bool:
        return self._error is not None

    def error(self) -> TritonError | None:
        return self._error


class ResponseSender:
    """Keeps what is sent; using it after the final flag crashes Triton, and fails here."""

    def __init__(self) -> None:
        self.responses: list[InferenceResponse] = []
        self.is_closed = False
        self.closed = threading.Event()
        self.client_left = False

    def send(self, response: InferenceResponse | None = None, flags: int = 0) -> None:
        if flags not in (0, TRITONSERVER_RESPONSE_COMPLETE_FINAL):
            raise TritonModelException(f"Unable to send response. Unsupported flag '{flags}' provided.")
        if self.is_closed:
            raise TritonModelException("Unable to send response. Response sender has been closed.")
        if response is None and flags == 0:
            raise TritonModelException("Inference Response object must be provided when the response flags is 0.")
        if response is not None:
            self.responses.append(response)
        self.is_closed = flags == TRITONSERVER_RESPONSE_COMPLETE_FINAL
        if self.is_closed:
            self.closed.set()

    def is_cancelled(self) -> bool:
        assert not self.is_closed, "is_cancelled() after the final flag crashes the real server"
        return self.client_left


class InferenceRequest:
    """One request; `parameters` is the empty text when there are none. A model may send one to another of `models`."""

    models: ClassVar[dict[str, Callable[[InferenceRequest], list[InferenceResponse]]]] = {}

    def __init__(
        self,
        inputs: Iterable[Tensor] = (),
        request_id: str = "",
        parameters: Mapping[str, Any] | None = None,
        *,
        model_name: str = "",
        requested_output_names: Iterable[str] = (),
    ) -> None:
        self._inputs, self._id = list(inputs), request_id
        self._parameters = json.dumps(parameters) if parameters is not None else ""
        self._model, self._requested = model_name, set(requested_output_names)
        self.sender = ResponseSender()

    def exec(self, *, decoupled: bool = False) -> Any:
        """One response, or an iterator of them; outputs that nobody requested are left out."""
        answers = iter(
            InferenceResponse([t for t in answer.output_tensors() if t.name() in self._requested], answer.error())
            for answer in self.models[self._model](self)
        )
        return answers if decoupled else next(answers)

    def inputs(self) -> list[Tensor]:
        return self._inputs

    def request_id(self) -> str:
        return self._id

    def parameters(self) -> str:
        return self._parameters

    def get_response_sender(self) -> ResponseSender:
        return self.sender

    def is_cancelled(self) -> bool:
        return self.sender.is_cancelled()


class Metric:
    """One metric; a call that its kind does not support is refused, and every increment when `refuses` is set."""

    refuses = False

    def __init__(self, kind: str, buckets: list[float] | None) -> None:
        self.kind, self.buckets = kind, buckets
        self.number = 0.0
        self.observed: list[float] = []

    def set(self, value: float) -> None:
        if self.kind != MetricFamily.GAUGE:
            raise TritonModelException(f"Failed to set metric value: {self.kind} does not support Set")
        self.number = value

    def increment(self, value: float) -> None:
        if self.refuses or self.kind == MetricFamily.HISTOGRAM or (self.kind == MetricFamily.COUNTER and value < 0):
            raise TritonModelException("Failed to increment metric value")
        self.number += value

    def observe(self, value: float) -> None:
        if self.kind != MetricFamily.HISTOGRAM:
            raise TritonModelException(f"Failed to observe metric value: {self.kind} does not support Observe")
        self.observed.append(value)


class MetricFamily:
    """Metrics of one name by their labels; the server knows a family as long as somebody holds it."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"
    alive: ClassVar[weakref.WeakValueDictionary[str, MetricFamily]] = weakref.WeakValueDictionary()

    def __init__(self, *, name: str, description: str, kind: str) -> None:
        assert name
        assert description
        assert kind in (self.COUNTER, self.GAUGE, self.HISTOGRAM)
        self._kind = kind
        self.metrics: dict[frozenset[tuple[str, str]], Metric] = {}
        self.alive[name] = self

    def Metric(self, labels: Mapping[str, str], buckets: list[float] | None = None) -> Metric:  # noqa: N802 (Triton's name)
        if (buckets is not None) != (self._kind == self.HISTOGRAM):
            raise TritonModelException("Failed to create metric: only histograms have buckets")
        if buckets is not None and not all(low < high for low, high in itertools.pairwise(buckets)):
            raise TritonModelException("Error when creating Metric: Bucket Boundaries must be strictly ordered")
        return self.metrics.setdefault(frozenset(labels.items()), Metric(self._kind, buckets))


class Logger:
    """Takes what is logged."""

    @staticmethod
    def log_warn(message: str) -> None:
        assert message

    @staticmethod
    def log_error(message: str) -> None:
        assert message


def get_input_tensor_by_name(inference_request: InferenceRequest, name: str) -> Tensor | None:
    return next((tensor for tensor in inference_request.inputs() if tensor.name() == name), None)


def get_output_tensor_by_name(inference_response: InferenceResponse, name: str) -> Tensor | None:
    return next((tensor for tensor in inference_response.output_tensors() if tensor.name() == name), None)


def load_shell(package: str) -> Any:
    """A component's `TritonPythonModel`, with this module in the real one's place."""
    sys.modules["triton_python_backend_utils"] = sys.modules[__name__]
    return importlib.import_module(f"{package}.triton_model").TritonPythonModel
