"""Traces as a collector gets them, and what they cost where nobody wants them."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import threading
import time
from typing import Any

import pytest

from tests.fakes.collector import Collector
from tests.gateway.http.room import JSON, Room, echo, endpoint, run
from trident_gateway.api.interface import AnswerSink, HttpRequest
from trident_gateway.observing.otlp import OtlpTracer
from trident_gateway.observing.request_log import RequestRecord
from trident_gateway.observing.tracing import NO_SPAN, NoTracer

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TIMES = {
    "arrival_time_ns": 1_000, "first_scheduled_time_ns": [2_000, 2_500], "first_token_time_ns": [5_000, 5_500],
    "last_token_time_ns": [9_000, 9_900],
}  # fmt: skip
SERVER, CLIENT, INTERNAL = 2, 3, 1


def traceparent(flags: str) -> list[tuple[bytes, bytes]]:
    return [(b"traceparent", f"00-{TRACE}-{PARENT}-{flags}".encode())]


def record(**fields: Any) -> RequestRecord:
    return RequestRecord(
        request_id="r",
        route="/v1/chat/completions",
        started_s=time.time(),
        duration_s=0.5,
        model="demo",
        status=200,
        **fields,
    )


def test_tracer_sends_the_tree_of_a_request() -> None:
    with Collector() as collector:
        tracer = OtlpTracer(collector.url, lambda: None, delay_s=0.05)
        made = record(num_input_tokens=3, num_output_tokens=5, finish_reasons=("stop",), upstream="a:1", ttft_s=0.1)
        span = tracer.start(traceparent("01"), made)
        assert span.wants_times
        span.start_upstream()
        ((name, value),) = span.headers()
        span.add_engine_times(TIMES)
        span.finish(made)
        tracer.close()
        assert collector.tree() == {
            "chat demo": "", "triton generate": "chat demo", "queue": "triton generate", "prefill": "triton generate",
            "decode": "triton generate",
        }  # fmt: skip
        root, call = collector.named("chat demo"), collector.named("triton generate")
        assert {span.trace_id for span in collector.spans} == {TRACE}
        assert (root.parent_id, root.kind, call.kind) == (PARENT, SERVER, CLIENT)
        assert (name, value) == (b"traceparent", f"00-{TRACE}-{call.span_id}-01".encode())
        assert [
            (span.start_ns, span.end_ns) for span in (collector.named(name) for name in ("queue", "prefill", "decode"))
        ] == [(1_000, 2_000), (2_000, 5_000), (5_000, 9_900)]
        assert root.attributes["gen_ai.operation.name"] == "chat"
        assert root.attributes["gen_ai.request.model"] == "demo"
        assert root.attributes["gen_ai.usage.input_tokens"] == 3
        assert root.attributes["gen_ai.usage.output_tokens"] == 5
        assert root.attributes["gen_ai.response.finish_reasons"] == ["stop"]
        assert root.attributes["http.response.status_code"] == 200
        assert root.end_ns - root.start_ns == pytest.approx(0.5e9, abs=1e6)
        assert root.status == 0


def test_tracer_samples_as_the_clients_trace_says() -> None:
    with Collector() as collector:
        tracer = OtlpTracer(collector.url, lambda: None)
        assert tracer.start(traceparent("00"), record()) is NO_SPAN
        for odd in ([(b"traceparent", b"nonsense")], [(b"traceparent", b"\xff" * 600)], []):
            span = tracer.start(odd, record())
            assert span.wants_times
            span.finish(record())
        tracer.close()
        assert len(collector.spans) == 3
        assert TRACE not in {span.trace_id for span in collector.spans}


@pytest.mark.parametrize(
    ("fields", "is_fault"),
    [
        ({"status": 400, "is_error": True, "error_code": "invalid_value"}, False),
        ({"status": 500, "is_error": True}, True),
    ],
)
def test_tracer_calls_faults_of_the_service_errors(fields: dict[str, Any], is_fault: bool) -> None:
    with Collector() as collector:
        tracer = OtlpTracer(collector.url, lambda: None)
        made = record()
        for name, value in fields.items():
            setattr(made, name, value)
        tracer.start([], made).finish(made)
        tracer.close()
        (span,) = collector.spans
        assert (span.status == 2) is is_fault
        assert "error.type" in span.attributes


@pytest.mark.slow
def test_tracer_without_a_collector_costs_a_count(caplog: pytest.LogCaptureFixture) -> None:
    failed = threading.Event()
    with socket.socket() as taken:  # bound, not listening: connections are refused
        taken.bind(("127.0.0.1", 0))
        tracer = OtlpTracer(f"http://127.0.0.1:{taken.getsockname()[1]}", failed.set, delay_s=0.01)
        for _ in range(5000):
            span = tracer.start([], record())
            span.start_upstream()
            span.finish(record())
        tracer.close()
        # Closing does not wait for the batch that is being tried again: it ends a little later.
        assert failed.wait(60)
    assert not caplog.records


def test_tracer_is_asked_once_a_request_and_told_its_end() -> None:
    @endpoint("/v1/completions")
    async def handle(request: HttpRequest, out: AnswerSink) -> None:
        await request.body()
        request.record.model = "demo"
        request.span.start_upstream()
        assert request.span.headers()
        request.span.add_engine_times(TIMES)
        await out.send_json(b"{}")

    async def test() -> None:
        with Collector() as collector:
            tracer = OtlpTracer(collector.url, lambda: None)
            async with Room(handle, echo, tracer=tracer) as room:
                for path in ("/v1/completions", "/v1/x", "/nothing"):
                    await room.ask("POST", path, b"{}", {**JSON, "traceparent": f"00-{TRACE}-{PARENT}-01"})
            await asyncio.get_running_loop().run_in_executor(None, tracer.close)
            tree = collector.tree()
            assert tree["text_completion demo"] == ""
            assert {"triton generate", "queue", "prefill", "decode", "/v1/x", "unknown"} < set(tree)

    run(test)


def test_tracer_that_is_off_imports_nothing() -> None:
    assert NoTracer().start([], record()) is NO_SPAN
    # The client of Redis imports the metrics of OpenTelemetry, where it is installed, on its own account.
    names = ("opentelemetry.sdk.trace", "opentelemetry.exporter", "google.protobuf", "trident_gateway.observing.otlp")
    code = f"import sys, trident_gateway.server\nprint([name for name in {names} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"
