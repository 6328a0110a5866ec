"""One trace from a client through the gateway and Triton to the engine, from two exporters."""

from __future__ import annotations

from pathlib import Path

from tests.e2e.server import Server, serve, until
from tests.fakes.collector import Collector, Span
from tests.gateway.http.room import run
from tests.gateway.process import GatewayProcess, completion
from trident_gateway.settings import ServerAddress

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
PHASES = ("queue", "prefill", "decode")


class _RealServer:
    """A server by its address, as a process of the gateway is told it."""

    def __init__(self, server: Server) -> None:
        self.address = ServerAddress(f"http://{server.http}", f"http://{server.host}:{server.metrics_port}")


def test_gateway_traces_of_triton_and_engine_are_below_those_of_the_gateway(
    roomy_repository: Path, tmp_path: Path
) -> None:
    with Collector() as collector:
        trace = (
            "--trace-config",
            "mode=opentelemetry",
            "--trace-config",
            "rate=0",
            "--trace-config",
            "level=TIMESTAMPS",
        )
        url = ("--trace-config", f"opentelemetry,url={collector.url}/v1/traces")
        with serve(roomy_repository, tmp_path / "log", "--", *trace, *url) as server:

            async def ask() -> None:
                options = ("--otlp", collector.url, "--drain-delay", "0")
                async with GatewayProcess(_RealServer(server), options=options) as gateway:
                    (model,) = await gateway.models()
                    for flags in ("01", "00"):
                        for is_stream in (False, True):
                            body = completion(model=model, max_tokens=8, stream=is_stream)
                            headers = {"traceparent": f"00-{TRACE}-{PARENT}-{flags}"}
                            assert (await gateway.ask("/v1/completions", body, headers)).status == 200
                    gateway.signal()
                    assert await gateway.status() == 0

            run(ask)
            until(lambda: _of_triton(collector), 60, "spans of Triton")
        spans = {span.span_id: span for span in collector.spans}
        # The list of models was asked for without a trace, and has one of its own.
        assert {span.name for span in collector.spans if span.trace_id != TRACE} == {"/v1/models"}
        calls = [span for span in collector.spans if span.name == "triton generate"]
        assert len(calls) == 2  # those that were not sampled have none
        for call in calls:
            root = spans[call.parent_id]
            assert root.parent_id == PARENT
            below = [span for span in collector.spans if span.parent_id == call.span_id]
            names = [span.name for span in below]
            assert set(PHASES) < set(names)
            phases = [next(span for span in below if span.name == name) for name in PHASES]
            times = [phases[0].start_ns, *(span.end_ns for span in phases)]
            assert times == sorted(times)
            assert call.start_ns <= times[0]
            assert times[-1] <= call.end_ns
            assert len(below) > len(PHASES), "Triton's own spans are not below the call"


def _of_triton(collector: Collector) -> list[Span]:
    own = {"triton generate", "/v1/models", *PHASES}
    return [span for span in collector.spans if span.name not in own and not span.name.startswith("text_completion")]
