"""A collector of traces that is not there, or that answers nothing: no request waits, and the log stays quiet."""

from __future__ import annotations

import asyncio
import statistics
import time

from tests.fakes.collector import Collector
from tests.fakes.triton_http import FakeTriton
from tests.gateway.http.room import run
from tests.gateway.process import GatewayProcess
from tests.ports import free_ports
from tests.resilience.load import KeepingClient, body
from tests.resilience.metrics import metric

NUM_ROUNDS = 150


def test_lost_collector_slows_nothing_down_and_floods_no_log() -> None:
    async def silent(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(60)
        writer.close()

    async def test() -> None:
        closed, deaf = free_ports(2)
        server = await asyncio.start_server(silent, "127.0.0.1", deaf)
        with Collector() as collector:
            urls = [collector.url, f"http://127.0.0.1:{closed}", f"http://127.0.0.1:{deaf}"]
            async with FakeTriton() as fake:
                gateways = [GatewayProcess(fake, options=("--otlp", url, "--drain-delay", "0")) for url in urls]
                try:
                    for gateway in gateways:
                        await gateway.__aenter__()
                    clients = [KeepingClient(gateway.port) for gateway in gateways]
                    seconds: list[list[float]] = [[] for _ in urls]
                    # In turn, so that a moment in which the machine is busy is a moment for all.
                    for _ in range(NUM_ROUNDS):
                        for number, client in enumerate(clients):
                            began = time.perf_counter()
                            status, _ = await client.ask(body(stream=False, max_tokens=1))
                            seconds[number].append(time.perf_counter() - began)
                            assert status == 200
                    well, *lost = (statistics.median(times) for times in seconds)
                    # It is the same work; the rest is for the machine.
                    assert max(lost) < 1.3 * well, (well, lost)
                    while not await metric(gateways[1], "failures_total", part="traces"):
                        await asyncio.sleep(0.1)
                    for gateway in gateways:
                        said = gateway.errors.decode().splitlines()
                        assert all(" serves demo" in line or "is ready" in line for line in said), said
                        gateway.signal()
                        assert await gateway.status() == 0
                finally:
                    for gateway in gateways:
                        await gateway.__aexit__(None, None, None)
                    server.close()

    run(test)
