"""One of two servers killed under load: it takes its running streams along, and nothing else."""

from __future__ import annotations

import asyncio

from tests.fakes.triton_http import FakeTriton
from tests.gateway.http.room import run, until
from tests.gateway.process import GatewayProcess
from tests.programs import needs
from tests.resilience.balancers.programs import HAPROXY, balancing
from tests.resilience.load import loading
from tests.resilience.metrics import metric
from tests.resilience.pairs import Pair, paced


def test_killed_server_takes_only_its_running_streams_and_is_back_soon_after_it_is_ready() -> None:
    async def test() -> None:
        fakes = [FakeTriton(answer=paced(0.02)) for _ in range(2)]
        dead, well = fakes
        async with dead, well, GatewayProcess(dead, well) as gateway, loading(gateway.port) as load:
            loop = asyncio.get_running_loop()

            async def comes(is_ready: float) -> float:
                began = loop.time()
                while await metric(gateway, "server_ready", server=dead.name) != is_ready:
                    assert loop.time() - began < 60
                    await asyncio.sleep(0.02)
                return loop.time() - began

            load.begin(10, stream=False, max_tokens=20, every_s=0.05)
            load.begin(10, stream=True, max_tokens=50, every_s=0.05)
            await until(lambda: load.num_answered > 50)
            await until(lambda: any(one.body["stream"] and one.num_sent > 2 for one in dead.running))
            num_streams = sum(one.body["stream"] and one.num_sent > 0 for one in dead.running)
            await dead.kill()
            assert await comes(0) <= 2
            before = load.num_answered
            await until(lambda: load.num_answered > before + 50)
            await dead.start()
            assert await comes(1) <= 5
            before = len(dead.requests)
            await until(lambda: len(dead.requests) > before + 20)
            await load.end()
            # Each ends with an error event, and no plain request that had had no byte fails.
            assert set(load.lost) == {("stream", "cut: server_error")}
            assert 0 < load.lost["stream", "cut: server_error"] <= num_streams

    run(test)


@needs("haproxy", "haproxy")
def test_killed_gateway_takes_only_its_running_streams_behind_haproxy() -> None:
    """The gateway is killed and its server with it, as when a machine or a pod is gone."""

    async def test() -> None:
        pairs = [Pair(gap_s=0.02) for _ in range(2)]
        dead, _ = pairs
        try:
            for pair in pairs:
                await pair.start()
            ports = [(pair.port, pair.private_port) for pair in pairs]
            async with balancing(HAPROXY, ports) as port, loading(port) as load:
                load.begin(10, stream=False, max_tokens=20, every_s=0.05)
                load.begin(10, stream=True, max_tokens=50, every_s=0.05)
                await until(lambda: load.num_answered > 50)
                await until(lambda: any(one.body["stream"] and one.num_sent > 2 for one in dead.server.running))
                num_streams = sum(bool(one.body["stream"]) for one in dead.server.running)
                await dead.kill()
                before = load.num_answered
                await until(lambda: load.num_answered > before + 100)
                await load.end()
                assert {kind for kind, _ in load.lost} == {"stream"}
                assert 0 < sum(load.lost.values()) <= num_streams
        finally:
            for pair in pairs:
                await pair.kill()

    run(test)
