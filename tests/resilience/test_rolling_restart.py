"""Two servers restarted one after the other behind balancers that learn late, and clients that repeat nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from tests.gateway.http.room import run, until
from tests.programs import needs
from tests.resilience.balancers.programs import HAPROXY, NGINX, Balancer, balancing
from tests.resilience.forwarder import Forwarder
from tests.resilience.load import Load, loading
from tests.resilience.pairs import Pair

#: A second after the signal no connection goes to the leaving gateway any more, as behind kube-proxy.
LATE_S = 1.0
NUM_REQUESTS = 1000


async def begin(load: Load) -> None:
    """Begin the load of every test here: some 150 requests a second, and streams of a second."""
    load.begin(30, stream=False, max_tokens=2, every_s=0.2)
    load.begin(10, stream=True, max_tokens=40, every_s=1.0)
    await until(lambda: load.num_answered > 50)


async def restart(pair: Pair, leave: Callable[[], Awaitable[None]]) -> None:
    """Restart a pair; `leave` tells the balancer, as late as it likes."""
    pair.gateway.signal()
    await asyncio.gather(pair.end(), leave())
    await pair.start()


async def roll(load: Load, pairs: list[Pair], forwarder: Forwarder) -> None:
    """Restart one after the other, and go on until there were requests enough."""

    async def leave(port: int) -> None:
        await asyncio.sleep(LATE_S)
        forwarder.targets.remove(port)

    while load.num_answered < NUM_REQUESTS or not all(pair.statuses for pair in pairs):
        for pair in pairs:
            await restart(pair, lambda port=pair.port: leave(port))  # type: ignore[misc]
            forwarder.targets.append(pair.port)
            if load.lost:
                return
    await load.end()


async def restarted(drain_delay_s: float) -> tuple[Load, list[Pair], Forwarder]:
    """Restart two pairs behind a late balancer; return what became of the requests."""
    pairs = [Pair("--drain-delay", f"{drain_delay_s:g}") for _ in range(2)]
    try:
        for pair in pairs:
            await pair.start()
        async with Forwarder(*(pair.port for pair in pairs)) as forwarder, loading(forwarder.port) as load:
            await begin(load)
            await roll(load, pairs, forwarder)
            return load, pairs, forwarder
    finally:
        for pair in pairs:
            await pair.kill()


def test_rolling_restart_behind_a_late_balancer_loses_none_of_a_thousand_requests() -> None:
    """The delay is short, and still longer than the balancer takes; the default of 15 s is the same mechanism."""

    async def test() -> None:
        load, pairs, forwarder = await restarted(2.0)
        assert load.lost == {}
        assert load.num_answered >= NUM_REQUESTS
        assert forwarder.num_refused == 0
        assert {status for pair in pairs for status in pair.statuses} == {0}

    run(test)


def test_rolling_restart_without_a_delay_loses_requests_so_that_the_test_above_can_fail() -> None:
    async def test() -> None:
        load, _, _ = await restarted(0.0)
        assert sum(load.lost.values()) > 5

    run(test)


async def behind(balancer: Balancer, drain_delay_s: float, **settings: str) -> Load:
    """Restart two pairs behind a real balancer, which finds out by itself; return what became of the requests."""
    pairs = [Pair("--drain-delay", f"{drain_delay_s:g}") for _ in range(2)]

    async def learn() -> None:
        """Tell nobody anything."""

    try:
        for pair in pairs:
            await pair.start()
        ports = [(pair.port, pair.private_port) for pair in pairs]
        async with balancing(balancer, ports, **settings) as port, loading(port) as load:
            await begin(load)
            while load.num_answered < NUM_REQUESTS or not all(pair.statuses for pair in pairs):
                for pair in pairs:
                    if load.lost:
                        return load
                    await restart(pair, learn)
                    await asyncio.sleep(1.5)  # for the balancer to look, or to try, once more
            await load.end()
            assert {status for pair in pairs for status in pair.statuses} == {0}
            return load
    finally:
        for pair in pairs:
            await pair.kill()


@needs("haproxy", "haproxy")
def test_rolling_restart_behind_haproxy_loses_none_of_a_thousand_requests() -> None:
    async def test() -> None:
        load = await behind(HAPROXY, 4.0)
        assert load.lost == {}
        assert load.num_answered >= NUM_REQUESTS

    run(test)


@needs("nginx", "nginx")
def test_rolling_restart_behind_nginx_loses_none_of_a_thousand_requests() -> None:
    async def test() -> None:
        load = await behind(NGINX, 1.0)
        assert load.lost == {}
        assert load.num_answered >= NUM_REQUESTS

    run(test)


@needs("nginx", "nginx")
def test_rolling_restart_behind_nginx_that_takes_a_refusal_for_an_answer_loses_requests() -> None:
    """Why the advised configuration also tries another gateway after 503, for POST, too."""

    async def test() -> None:
        load = await behind(NGINX, 1.0, NEXT="error timeout")
        assert set(load.lost) <= {("plain", "503 draining"), ("stream", "503 draining")}
        assert load.lost

    run(test)
