"""The pages of gateways: what counts of them, and what has changed between two readings."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest

from tests.tools.rollouts.sides import page
from trident_ensemble.contract.errors import ConfigError
from trident_gateway.observing.metrics import Metrics
from trident_gateway.observing.request_log import RequestRecord
from trident_tools.rollouts.figures import SideFigures
from trident_tools.rollouts.gateways import Gateways, GatewaySource, gateway_source
from trident_tools.rollouts.pages import parse_page

CHAT = "/v1/chat/completions"


def _record(side: str, status: int = 200, **fields: object) -> RequestRecord:
    record = RequestRecord(route=CHAT, model="demo", status=status, side=side)
    for name, value in fields.items():
        setattr(record, name, value)
    return record


class Gateway:
    """The private port of a gateway, with its real page."""

    def __init__(self) -> None:
        self.restart()
        self.weight = 10.0
        self.is_canary_ready = True
        self.ejections = 0

    def restart(self) -> None:
        """Count from 0."""
        self.metrics = Metrics()
        sides = ("side",)
        self.metrics.add("gauge", "route_weight", "Weight", sides, lambda: [(("canary",), self.weight)])
        self.metrics.add(
            "gauge", "server_ready", "Ready", ("server", "side"),
            lambda: [(("a:1", "stable"), 1), (("b:1", "canary"), self.is_canary_ready)],
        )  # fmt: skip
        self.metrics.add(
            "counter", "server_ejections_total", "Ejections", ("server", "side"),
            lambda: [(("b:1", "canary"), self.ejections)],
        )  # fmt: skip

    def count(self, *records: RequestRecord) -> None:
        """Count requests."""
        for record in records:
            self.metrics.count_request(record)

    @contextmanager
    def listening(self, port: int = 0) -> Iterator[int]:
        """Answer on a thread; yield the port."""
        gateway = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                content = gateway.metrics.render()
                self.send_response(200 if self.path == "/metrics" else 404)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        with ThreadingHTTPServer(("127.0.0.1", port), Handler) as server:
            thread = Thread(target=server.serve_forever, args=(0.05,))
            thread.start()
            try:
                yield server.server_address[1]
            finally:
                server.shutdown()
                thread.join(60)


@contextmanager
def _watched(*gateways: Gateway, sides: tuple[str | None, ...] = ()) -> Iterator[Gateways]:
    with ExitStack() as stack:
        ports = [stack.enter_context(gateway.listening()) for gateway in gateways]
        watched = Gateways([
            GatewaySource("127.0.0.1", port, side=side)
            for port, side in zip(ports, sides or (None,) * len(ports), strict=True)
        ])  # fmt: skip
        stack.callback(watched.close)
        yield watched


def test_page_is_read_by_side() -> None:
    text = page(
        _record("stable", finish_reasons=("stop",), ttft_s=0.1),
        _record("canary", finish_reasons=("length", "stop"), ttft_s=0.3),
        _record("canary", 500, is_error=True),
        # A stream that has begun, and ends with an error.
        _record("canary", 200, is_error=True, error_code="server_error"),
        _record("canary", 400),
        _record("canary", 499),
        # Those whom a limit refuses have had no answer of the canary.
        *[_record("canary", 429)] * 200,
        _record("canary", route="/tokenize"),
        _record("canary", model="other"),
    )
    found = parse_page(text, {"demo"})
    canary, stable = found.figures["canary"], found.figures["stable"]
    assert (stable.requests, stable.errors, stable.finishes, stable.lengths) == (1, 0, 1, 0)
    assert (canary.requests, canary.errors, canary.refusals, canary.gone) == (4, 2, 1, 1)
    assert (canary.finishes, canary.lengths) == (2, 1)
    assert canary.ttft.mean == pytest.approx(0.3)
    assert canary.ttft.quantile_edges(0.95) == (0.2, 0.35)
    assert parse_page(text).figures["canary"].requests == 5


def test_calls_that_the_stable_side_took_for_the_canary_are_its_errors() -> None:
    gateway = Gateway()
    gateway.count(*[_record("stable", fallback_from="demo")] * 3, _record("stable", fallback_from="other"))
    figures = parse_page(gateway.metrics.render().decode(), {"demo"}).figures
    assert (figures["canary"].requests, figures["canary"].errors, figures["stable"].errors) == (3, 3, 0)


_DRAINING = "trident_gateway_draining 0\n"


@pytest.mark.parametrize(
    "text",
    [
        "", "up 1\n", "nonsense {\n", "<html>",
        _DRAINING + 'trident_gateway_requests_total{side="canary",model="demo"} 1\n',
        _DRAINING + 'trident_gateway_ttft_seconds_bucket{side="canary",model="demo"} 1\n',
        _DRAINING + 'trident_gateway_finishes_total{side="canary",model="demo"} 1\n',
        _DRAINING + 'trident_gateway_requests_total{side="canary",model="demo",route="/x",code="200"} NaN\n',
    ],
)  # fmt: skip
def test_page_of_something_else_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_page(text)


def test_gateways_are_added_up_from_one_look_to_the_next() -> None:
    first, second = Gateway(), Gateway()
    first.count(_record("canary"))
    with _watched(first, second) as gateways:
        assert gateways.look().counted.canary == SideFigures()
        first.count(_record("canary"), _record("stable"))
        second.count(_record("canary", 500))
        look = gateways.look()
        assert (look.counted.canary.requests, look.counted.canary.errors, look.counted.stable.requests) == (2, 1, 1)
        assert (look.weights, look.has_ready_canary, look.problems) == (frozenset({10.0}), True, ())
        second.weight, second.is_canary_ready = 0.0, False
        look = gateways.look()
        assert (look.weights, look.has_ready_canary) == (frozenset({0.0, 10.0}), False)
        assert look.counted.canary.requests == 0


def test_a_gateway_that_starts_anew_loses_nothing_but_what_it_was() -> None:
    gateway = Gateway()
    gateway.count(*[_record("canary")] * 5)
    with _watched(gateway) as gateways:
        gateways.look()
        gateway.restart()
        gateway.count(_record("canary"))
        counted = gateways.look().counted.canary
        assert (counted.requests, counted.ejections) == (1, 0)
        gateway.ejections = 1
        assert gateways.look().counted.canary.ejections == 1
        # A server that has left takes its ejections with it.
        gateway.ejections = 0
        assert gateways.look().counted.canary == SideFigures()


def test_a_gateway_that_cannot_be_read_is_named_and_nothing_is_lost() -> None:
    first, second = Gateway(), Gateway()
    with first.listening() as port:
        with second.listening() as other:
            gateways = Gateways([GatewaySource("127.0.0.1", port), GatewaySource("127.0.0.1", other)])
            gateways.look()
        first.count(_record("canary"))
        look = gateways.look()
        assert (look.weights, look.counted.canary.requests) == (None, 0)
        assert f"127.0.0.1:{other}" in "".join(look.problems)
        with second.listening(other):
            assert gateways.look().counted.canary.requests == 1
        gateways.close()


def test_sides_can_be_told_by_the_gateway() -> None:
    stable, canary = Gateway(), Gateway()
    with _watched(stable, canary, sides=("stable", "canary")) as gateways:
        gateways.look()
        # Each calls its own servers stable.
        stable.count(*[_record("stable")] * 3)
        canary.count(*[_record("stable")] * 2)
        counted = gateways.look().counted
        assert (counted.stable.requests, counted.canary.requests) == (3, 2)
        canary.restart()
        assert gateways.look().counted.canary.ejections == 1


def test_each_address_of_a_name_is_a_gateway() -> None:
    assert GatewaySource("127.0.0.1", 8081, is_name=True).addresses() == [("127.0.0.1", 8081)]
    assert ("127.0.0.1", 8081) in GatewaySource("localhost", 8081, is_name=True).addresses()
    gateways = Gateways([GatewaySource("nowhere.invalid", 8081, is_name=True)])
    look = gateways.look()
    gateways.close()
    assert look.weights is None
    assert "nowhere.invalid" in look.problems[0]


@pytest.mark.parametrize("url", ["", "127.0.0.1:8081", "https://a:1", "http://a", "http://a:1/metrics", "http://a:x"])
def test_a_gateway_that_is_no_url_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="--gateway"):
        gateway_source("--gateway", url)
