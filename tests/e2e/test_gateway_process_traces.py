"""The traces of a gateway's process, with a double of Triton behind it."""

from __future__ import annotations

import time
from typing import Any

import pytest

from tests.fakes.collector import Collector
from tests.fakes.triton_http import FakeTriton, Script, tokens
from tests.gateway.http.room import run, until
from tests.gateway.process import GatewayProcess, completion

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


def timed(request: dict[str, Any]) -> Script:
    """Answer with tokens, and with times if they are asked for."""
    script = tokens(request)
    if request.get("return_perf_metrics"):
        now = time.time_ns()
        times = {"arrival": now, "first_scheduled": now + 10, "first_token": now + 20, "last_token": now + 30}
        script.events = [*script.events[:-1], {**script.events[-1], **{f"{k}_time_ns": v for k, v in times.items()}}]
    return script


@pytest.mark.parametrize("by_variable", [False, True])
def test_tracer_of_a_gateway_hands_the_trace_on_and_sends_the_whole_tree(by_variable: bool) -> None:
    async def test() -> None:
        with Collector() as collector:
            options = ("--drain-delay", "0", *(() if by_variable else ("--otlp", collector.url)))
            environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url} if by_variable else {}
            async with (
                FakeTriton(answer=timed) as fake,
                GatewayProcess(fake, options=options, **environment) as gateway,
            ):
                headers = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
                reply = await gateway.ask("/v1/completions", completion(), headers)
                assert reply.status == 200
                unsampled = {"traceparent": f"00-{TRACE}-{PARENT}-00"}
                assert (await gateway.ask("/v1/completions", completion(), unsampled)).status == 200
                gateway.signal()
                assert await gateway.status() == 0
                first, second = fake.requests
            await until(lambda: collector.spans)
            assert collector.tree() == {
                "text_completion demo": "", "triton generate": "text_completion demo", "queue": "triton generate",
                "prefill": "triton generate", "decode": "triton generate",
            }  # fmt: skip
            assert first.headers["traceparent"] == f"00-{TRACE}-{collector.named('triton generate').span_id}-01"
            assert "traceparent" not in second.headers
            assert "return_perf_metrics" not in second.body
            assert collector.named("text_completion demo").parent_id == PARENT

    run(test)
