"""Traces of requests, sent to a collector by OpenTelemetry's protocol over HTTP.

Owns the spans of a request, their names and attributes (those of the conventions for generative AI, which are still
changing, so they stand here alone), and the way to the collector. Never puts into a span what a client or a model has
written, and never makes a request wait: a thread of OpenTelemetry's sends, and what it cannot send is dropped and
counted.

    chat MODEL                  the request, as the gateway has it
    └── triton generate         from the call to the server to the end
        ├── queue               the last three by the clock of the server
        ├── prefill
        └── decode
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from trident_gateway.errors import Headers
from trident_gateway.observing.request_log import RequestRecord
from trident_gateway.observing.tracing import ENGINE_TIMES, NO_SPAN, RequestSpan

_PATH = "/v1/traces"
_EXPORT_TIMEOUT_S = 5.0
_CLOSE_TIMEOUT_MS = 2000
_TRACEPARENT = b"traceparent"
#: Route -> the name of the operation in the conventions.
_OPERATIONS = {
    "/v1/chat/completions": "chat",
    "/v1/responses": "chat",
    "/v1/completions": "text_completion",
}
_PHASES = ("queue", "prefill", "decode")


class OtlpTracer:
    """Traces requests and sends the traces.

    Args:
        url: of the collector, with or without `/v1/traces`.
        count_failure: is called, by a thread, for each batch of spans that could not be sent.
        delay_s: between two batches.
    """

    def __init__(self, url: str, count_failure: Callable[[], None], delay_s: float = 5.0) -> None:
        # A collector that is gone would be logged for every batch; it is counted instead.
        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL + 1)
        endpoint = url if url.endswith(_PATH) else url.rstrip("/") + _PATH
        exporter = OTLPSpanExporter(endpoint=endpoint, timeout=_EXPORT_TIMEOUT_S)
        self._processor = BatchSpanProcessor(_Counting(exporter, count_failure), schedule_delay_millis=delay_s * 1000)
        # Which requests are sampled is decided by the client's trace, and without one by OTEL_TRACES_SAMPLER.
        self._provider = TracerProvider(
            resource=Resource.create({SERVICE_NAME: "trident-gateway"}), shutdown_on_exit=False
        )
        self._provider.add_span_processor(self._processor)
        self._tracer = self._provider.get_tracer("trident_gateway")
        self._propagator = TraceContextTextMapPropagator()

    def start(self, headers: Sequence[tuple[bytes, bytes]], record: RequestRecord) -> RequestSpan:
        """Return the trace of a request that begins."""
        carrier = {
            name.decode(): value.decode("latin-1") for name, value in headers if name == _TRACEPARENT
        }  # of the state that vendors hand on beside it nothing is needed
        span = self._tracer.start_span(
            "request",
            context=self._propagator.extract(carrier),
            kind=SpanKind.SERVER,
            start_time=int(record.started_s * 1e9),
        )
        return _SampledSpan(self, span) if span.is_recording() else NO_SPAN

    def child(self, name: str, parent: Span, kind: SpanKind, start_ns: int) -> Span:
        """Return a span below another one."""
        return self._tracer.start_span(name, context=set_span_in_context(parent), kind=kind, start_time=start_ns)

    def inject(self, span: Span) -> Headers:
        """Return the headers that make a span the parent of what follows elsewhere."""
        carrier: dict[str, str] = {}
        self._propagator.inject(carrier, context=set_span_in_context(span))
        return tuple((name.encode(), value.encode()) for name, value in carrier.items())

    def close(self) -> None:
        """Send what waits, unless that takes too long."""
        self._processor._batch_processor.shutdown(_CLOSE_TIMEOUT_MS)


class _SampledSpan:
    """The trace of a request that is traced."""

    wants_times = True

    def __init__(self, tracer: OtlpTracer, span: Span) -> None:
        self._tracer = tracer
        self._span = span
        self._call: Span | None = None
        self._times: tuple[int, ...] = ()

    def start_upstream(self) -> None:
        if self._call is None:
            self._call = self._tracer.child("triton generate", self._span, SpanKind.CLIENT, time.time_ns())

    def headers(self) -> Headers:
        return self._tracer.inject(self._call or self._span)

    def add_engine_times(self, times: Mapping[str, Any]) -> None:
        values = [_flat(times.get(name)) for name in ENGINE_TIMES]
        if all(values):
            # Of several answers to one prompt the first one is what was waited for, and the last one ends it.
            self._times = (*(min(value) for value in values[:-1]), max(values[-1]))

    def finish(self, record: RequestRecord) -> None:
        end_ns = int((record.started_s + record.duration_s) * 1e9)
        if self._call is not None:
            self._finish_call(self._call, record, end_ns)
        operation = _OPERATIONS.get(record.route)
        self._span.update_name(f"{operation} {record.model}" if operation and record.model else record.route)
        attributes: dict[str, Any] = {
            "http.route": record.route,
            "http.response.status_code": record.status,
            "trident.request_id": record.request_id,
            "trident.tenant": record.tenant,
        }
        if operation:
            attributes["gen_ai.operation.name"] = operation
            attributes["gen_ai.provider.name"] = "trident"
        if record.model:
            attributes["gen_ai.request.model"] = record.model
            attributes["gen_ai.usage.input_tokens"] = record.num_input_tokens
            attributes["gen_ai.usage.output_tokens"] = record.num_output_tokens
        if record.finish_reasons:
            attributes["gen_ai.response.finish_reasons"] = record.finish_reasons
        if record.ttft_s is not None:
            attributes["gen_ai.response.time_to_first_chunk"] = record.ttft_s
        self._span.set_attributes(attributes)
        if record.is_error or record.client_gone:
            kind = record.error_code or "client_gone"
            self._span.set_attribute("error.type", kind)
            # What a client did wrong is no fault of this service.
            if record.status >= 500 or (record.is_error and record.status == 200):
                self._span.set_status(Status(StatusCode.ERROR, kind))
        self._span.end(end_ns)

    def _finish_call(self, call: Span, record: RequestRecord, end_ns: int) -> None:
        for name, start_ns, phase_end_ns in zip(_PHASES, self._times, self._times[1:], strict=False):
            phase = self._tracer.child(name, call, SpanKind.INTERNAL, start_ns)
            phase.end(max(start_ns, phase_end_ns))
        call.set_attributes({"server.address": record.upstream, "trident.upstream_id": record.upstream_id})
        call.end(end_ns)


class _Counting(SpanExporter):
    """An exporter whose failures are counted."""

    def __init__(self, exporter: SpanExporter, count_failure: Callable[[], None]) -> None:
        self._exporter = exporter
        self._count_failure = count_failure

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = self._exporter.export(spans)
        if result is not SpanExportResult.SUCCESS:
            self._count_failure()
        return result

    def shutdown(self) -> None:
        self._exporter.shutdown()


def _flat(value: Any) -> list[int]:
    if value is None:
        return []
    return [int(one) for one in value] if isinstance(value, Sequence) else [int(value)]
