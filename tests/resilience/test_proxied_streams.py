"""Streams through the balancers that are advised: token by token, and hang-ups that arrive."""

from __future__ import annotations

import asyncio
import time

import pytest

from tests.fakes.triton_http import FakeTriton
from tests.gateway.http.room import run, until
from tests.gateway.process import JSON, GatewayProcess
from tests.programs import needs
from tests.resilience.balancers.programs import CADDY, HAPROXY, NGINX, Balancer, balancing
from tests.resilience.load import PATH, body, connect
from tests.resilience.pairs import paced

GAP_S = 0.4
BALANCERS = [
    pytest.param(balancer, marks=needs(balancer.program, balancer.program), id=balancer.program)
    for balancer in (HAPROXY, NGINX, CADDY)
]


async def gap_s(port: int) -> float:
    """Return the seconds between the first and the second event of a stream."""
    client = await connect(port)
    client.send("POST", PATH, body(stream=True, max_tokens=4), JSON)
    assert (await client.head()).status == 200
    times: list[float] = []
    received = b""
    while len(times) < 2:
        received += await client.chunk()
        times += [time.monotonic()] * (received.count(b"\n\ndata: {") + received.startswith(b"data: {") - len(times))
    client.close()
    return times[1] - times[0]


@pytest.mark.parametrize("balancer", BALANCERS)
def test_proxied_streams_arrive_token_by_token_and_hang_ups_reach_the_engine(balancer: Balancer) -> None:
    async def test() -> None:
        async with (
            FakeTriton(answer=paced(GAP_S)) as fake,
            GatewayProcess(fake) as one,
            balancing(balancer, [(one.port, one.private_port)] * 2) as port,
        ):
            direct, proxied = await gap_s(one.port), await gap_s(port)
            assert GAP_S / 2 < proxied < 2 * direct

            await until(lambda: not fake.running)
            for stream in (True, False):
                client = await connect(port)
                client.send("POST", PATH, body(stream=stream, max_tokens=1000), JSON)
                await until(lambda: fake.running)
                if stream:
                    await client.head()
                client.close()
                left_at = asyncio.get_running_loop().time()
                await until(lambda: not fake.running)
                assert asyncio.get_running_loop().time() - left_at < 2

    run(test)
