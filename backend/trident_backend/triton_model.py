"""The Triton backend `trident`: tensors to fields, responses to tensors, and nothing else.

Owns the conversion at the border with Triton's Python backend and the core's life with its model instance. Never
schedules or computes anything itself: `CoreService` does, which knows nothing of Triton.
"""

from __future__ import annotations

import ctypes
import json
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from trident_backend.engine.factory import load_engine
from trident_backend.guided.compiler import GrammarCompiler
from trident_backend.metrics.gauges import CoreMetrics
from trident_backend.metrics.instruments import Labels
from trident_backend.requests.request import RequestContext
from trident_backend.sequences.stop_strings import StopStrings
from trident_backend.serving.responses import Response
from trident_backend.serving.service import CoreService
from trident_ensemble.contract import layout, tensors
from trident_ensemble.contract.client_input import check_parameters
from trident_ensemble.contract.errors import ConfigError, RequestError, TridentError, triton_code, wire_message
from trident_ensemble.contract.failures import internal_error, log_failure
from trident_ensemble.contract.settings import CoreSettings, parse_parameters
from trident_ensemble.draining import DrainNotice
from trident_ensemble.text.detokenizer import load_tokenizer, make_detokenizer
from trident_ensemble.text.special_tokens import special_tokens_of
from trident_ensemble.text.token_bytes import TokenBytes

_FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL
_LAST_METRICS_S = 3.0
#: `trident serve` stops the server once no request is open, so it must not see an old count.
_OPEN_PERIOD_S = 0.1
_EXIT_ENGINE_DIED = 70
_INPUTS = {spec.name: spec for spec in tensors.CORE_INPUTS}
_DTYPES = {
    "STRING": np.object_, "BOOL": np.bool_, "INT32": np.int32, "UINT64": np.uint64, "FP32": np.float32,
}  # fmt: skip


class TritonPythonModel:
    """One core: one engine, one instance."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Load the engine of this model version and start serving it."""
        config = json.loads(args["model_config"])
        if sum(group["count"] for group in config["instance_group"]) != 1:
            raise ConfigError(
                "instance_group.count: an engine is hosted by one instance; its scheduler does the batching"
            )
        folder = Path(args["model_repository"]) / args["model_version"]
        settings = parse_parameters(CoreSettings, config["parameters"])
        engine, manifest = load_engine(folder, settings.gpu)
        anchors = np.load(folder / layout.TOKEN_TABLE_FILE, allow_pickle=False).tobytes()
        tokenizer = load_tokenizer(folder)
        special, token_bytes = special_tokens_of(tokenizer), TokenBytes(tokenizer)
        stop_strings = partial(StopStrings, make_detokenizer(tokenizer), anchors, special=special)
        self._service = CoreService(
            engine,
            RequestContext(
                engine.spec, manifest.generation, stop_strings, token_bytes, special, settings.default_max_tokens
            ),
            anchors,
            settings,
            guides=GrammarCompiler(folder, engine.spec.vocab_size, max_bytes=settings.guided_memory_mb << 20),
            notice=DrainNotice.from_environment(os.environ),
            on_fatal=_exit,
        )
        labels = {"model": args["model_name"], "version": args["model_version"]}
        self._meters = _TritonMeters()
        self._metrics = CoreMetrics(engine.spec, labels, self._meters)
        self._metrics.show(self._service.stats, self._service.take_records())
        self._stopped = threading.Event()
        period_s = settings.metrics_period_ms / 1000
        self._publisher = threading.Thread(target=self._publish, args=(period_s,), name="trident-metrics", daemon=True)
        self._publisher.start()

    def execute(self, requests: list[Any]) -> None:
        """Hand requests to the core; every answer comes later, through the response sender."""
        for request in requests:
            try:
                self._submit(request, _TritonResponder(request.get_response_sender()))
            except BaseException as error:  # whatever it is, the other requests must be served
                log_failure("a request could not be answered", error)

    def finalize(self) -> None:
        """Answer what is left, free the engine, and publish what was measured last."""
        try:
            self._service.stop()
        finally:
            self._stopped.set()
            self._publisher.join(_LAST_METRICS_S)

    def _submit(self, request: Any, responder: _TritonResponder) -> None:
        try:
            fields = self._read(request)
            self._service.submit(fields, responder, request.request_id())
        except TridentError as error:
            responder.fail(error)
        except BaseException as error:
            responder.fail(internal_error("the request could not be taken", error))

    def _read(self, request: Any) -> dict[str, Any]:
        try:
            check_parameters(json.loads(request.parameters() or "{}"), tensors.CORE_INPUTS)
            return dict(_field(tensor, self._service.spec.max_seq_len) for tensor in request.inputs())
        except RequestError:
            self._service.refused()
            raise

    def _publish(self, period_s: float) -> None:
        waited_s, is_last = 0.0, False
        try:
            while not is_last:
                wait_s = min(period_s, _OPEN_PERIOD_S)
                is_last = self._stopped.wait(wait_s)
                self._metrics.show_open(self._service.num_open)
                waited_s += wait_s
                if is_last or waited_s >= period_s:
                    waited_s = 0.0
                    self._metrics.show(self._service.stats, self._service.take_records())
                    self._metrics.publish_sums()
        except Exception as error:  # no second try: tritonserver has died of such failures in a row
            pb_utils.Logger.log_error(f"metrics are no longer published: {error!r}")


class _TritonResponder:
    """A `Responder` that sends through Triton.

    It raises what Triton does not take: a client that misses a chunk must not get the next one.
    """

    def __init__(self, sender: Any) -> None:
        self._sender = sender

    def send(self, response: Response) -> None:
        outputs = [
            pb_utils.Tensor(tensors.OUTPUT_IDS.name, response.output_ids[None]),
            pb_utils.Tensor(tensors.CHUNK.name, np.array([response.header.pack()], np.int64)),
            *(pb_utils.Tensor(spec.name, values[None]) for spec, values in response.outputs),
        ]
        self._sender.send(pb_utils.InferenceResponse(outputs), flags=_FINAL if response.is_final else 0)

    def fail(self, error: TridentError) -> None:
        code = getattr(pb_utils.TritonError, triton_code(error))
        self._sender.send(
            pb_utils.InferenceResponse(error=pb_utils.TritonError(wire_message(error), code)), flags=_FINAL
        )

    def is_cancelled(self) -> bool:
        try:
            return bool(self._sender.is_cancelled())
        except Exception as error:
            pb_utils.Logger.log_warn(f"a client could not be asked after: {error}")
            return False


def _field(tensor: Any, max_seq_len: int) -> tuple[str, Any]:
    """Return one input's name and value, as `RequestFields` takes them.

    Raises:
        RequestError: it is unknown, or of another type or size.
    """
    name: str = tensor.name()
    array = tensor.as_numpy()
    spec = _INPUTS.get(name)
    if spec is None:
        raise RequestError(name, "is not an input of the core")
    if array.dtype != _DTYPES[spec.dtype]:
        raise RequestError(name, f"must be {spec.dtype}, not {array.dtype}")
    if spec is tensors.INPUT_IDS and array.size > max_seq_len:
        raise RequestError(name, f"{array.size} tokens are too many: max_seq_len is {max_seq_len}")
    if spec.dims != (1,):
        return name, array.ravel().tolist()
    if array.size != 1:
        raise RequestError(name, f"must hold one value, not {array.size}")
    return name, array.item()


class _TritonMeters:
    """`Instruments` that Triton publishes.

    What this makes lives as long as the process, and is never destroyed. At the process's end a metric's destructor
    would speak to a stub that is gone, which is a segmentation fault (triton-inference-server/server issue 8662).
    Before the end it would take the metric from the core that has been loaded in this one's place, with which Triton
    shares it (issue 8663).
    """

    def __init__(self) -> None:
        self._families: dict[str, Any] = {}
        self._made: list[Any] = []
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._made))

    def gauge(self, family: str, description: str, labels: Labels) -> Callable[[float], None]:
        send: Callable[[float], None] = self._metric(family, description, pb_utils.MetricFamily.GAUGE, labels).set
        return send

    def counter(self, family: str, description: str, labels: Labels) -> Callable[[float], None]:
        metric = self._metric(family, description, pb_utils.MetricFamily.COUNTER, labels)
        send: Callable[[float], None] = metric.increment
        return send

    def histogram(
        self, family: str, description: str, labels: Labels, bounds: Sequence[float]
    ) -> Callable[[float], None]:
        kind = pb_utils.MetricFamily.HISTOGRAM
        send: Callable[[float], None] = self._metric(family, description, kind, labels, buckets=list(bounds)).observe
        return send

    def _metric(self, family: str, description: str, kind: Any, labels: Labels, **bounds: Any) -> Any:
        metric = self._family(family, description, kind).Metric(labels=dict(labels), **bounds)
        self._made.append(metric)
        return metric

    def _family(self, name: str, description: str, kind: Any) -> Any:
        if name not in self._families:
            self._families[name] = pb_utils.MetricFamily(name=name, description=description, kind=kind)
            self._made.append(self._families[name])
        return self._families[name]


def _exit(error: BaseException) -> None:
    """End the process at once: a model that is ready and dead is worse than one that is gone."""
    try:
        pb_utils.Logger.log_error(f"the core cannot go on: {error!r}")
    finally:
        os._exit(_EXIT_ENGINE_DIED)
