"""One limit, held by several gateways; and what they do without the store that they share."""

from __future__ import annotations

import asyncio
import functools
import itertools
import logging
import os
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from typing import Any

import pytest
import redis

from tests.child_processes import tied
from tests.gateway.limits.redis_servers import RedisServer
from trident_ensemble.contract.errors import ConfigError
from trident_gateway.callers import Caller, CallerLimits
from trident_gateway.errors import ApiError, RateLimitError
from trident_gateway.limits.limiter import Limiter, Reservation
from trident_gateway.limits.redis import RedisStore
from trident_gateway.limits.shared import SharedStore
from trident_gateway.settings import GatewaySettings

_numbers = itertools.count()


def _caller(**limits: int) -> Caller:
    name = f"shared-{os.getpid()}-{next(_numbers)}"
    return Caller(name, name, "tenant", limits=CallerLimits(**limits))


def _limiter(
    server: RedisServer,
    *,
    num_replicas: int = 2,
    fails_open: bool = True,
    lease_ms: int = 30_000,
    timeout_s: float = 30,
    clock_ms: Callable[[], int] | None = None,
) -> Limiter:
    shared = RedisStore(server.url, lease_ms=lease_ms, timeout_s=timeout_s, clock_ms=clock_ms)
    return Limiter(SharedStore(shared, num_replicas=num_replicas, fails_open=fails_open, retry_s=0.02))


def _run(main: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(main, 60))


class _Clock:
    def __init__(self) -> None:
        self.now_ms = 1_800_000_000_000

    def __call__(self) -> int:
        return self.now_ms


def _shared_store(limiter: Limiter) -> RedisStore:
    assert isinstance(limiter._store, SharedStore)
    return limiter._store._shared


async def _try(limiter: Limiter, caller: Caller, input_tokens: int = 1, output_tokens: int = 1) -> Reservation | None:
    try:
        return await limiter.reserve(caller, input_tokens, output_tokens)
    except RateLimitError:
        return None


async def _until(holds: Callable[[], Awaitable[bool]]) -> None:
    while not await holds():
        await asyncio.sleep(0.01)


@pytest.fixture
def own_server() -> Iterator[RedisServer]:
    """Yield a server that one test may kill."""
    with RedisServer() as server:
        yield server


def test_two_gateways_hold_one_limit_of_concurrency(redis_server: RedisServer) -> None:
    async def main() -> None:
        limiters, caller = [_limiter(redis_server) for _ in range(2)], _caller(concurrency=7)
        for _ in range(5):
            found = await asyncio.gather(*(_try(limiters[number % 2], caller) for number in range(60)))
            held = [reservation for reservation in found if reservation is not None]
            assert len(held) == 7
            await asyncio.gather(*(reservation.settle(1, 1) for reservation in held))
        for limiter in limiters:
            await limiter.close()

    _run(main())


_GATEWAY = """
import asyncio, sys, time
from trident_gateway.callers import Caller, CallerLimits
from trident_gateway.errors import ApiError
from trident_gateway.limits.limiter import Limiter
from trident_gateway.limits.redis import RedisStore
from trident_gateway.limits.shared import SharedStore
from trident_gateway.settings import GatewaySettings

async def main():
    limiter = Limiter(SharedStore(RedisStore(sys.argv[1], timeout_s=30), num_replicas=2, fails_open=False))
    caller = Caller("k", sys.argv[2], "t", limits=CallerLimits(requests_per_minute=200, tokens_per_day=10**6))
    print("ready", flush=True)
    begin_s = float(sys.stdin.readline())
    granted, last_s = 0, begin_s
    async def ask():
        nonlocal granted, last_s
        while True:
            try:
                reservation = await limiter.reserve(caller, 10, 10)
            except ApiError:  # the bucket is empty
                return
            granted, last_s = granted + 1, time.time()
            await reservation.settle(10, 5)
    await asyncio.gather(*(ask() for _ in range(16)))
    await limiter.close()
    print(granted, last_s, flush=True)

asyncio.run(main())
"""


@pytest.mark.slow
def test_two_processes_under_load_hold_one_limit_to_within_one_request(redis_server: RedisServer) -> None:
    """Both ask as fast as they can until the bucket is empty: what passes is the bucket and what flows into it."""
    account = f"processes-{os.getpid()}"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = tied([sys.executable, "-c", _GATEWAY, redis_server.url, account])
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    gateways = [subprocess.Popen(command, env=environment, **pipes) for _ in range(2)]  # type: ignore[call-overload]
    for gateway in gateways:
        assert gateway.stdout.readline() == "ready\n"
    begin_s = time.time()
    for gateway in gateways:
        gateway.stdin.write(f"{begin_s}\n")
        gateway.stdin.flush()
    said = [gateway.communicate(timeout=60)[0].split() for gateway in gateways]
    granted = [int(number) for number, _ in said]
    lasted_s = max(float(last_s) for _, last_s in said) - begin_s
    assert 200 <= sum(granted) <= 200 + lasted_s * 200 / 60 + 1
    client = redis.Redis.from_url(redis_server.url)
    assert client.hget(f"trident:{{{account}}}:account", "day_used") == str(15 * sum(granted)).encode()
    assert client.zcard(f"trident:{{{account}}}:leases") == 0


def test_what_a_dead_gateway_held_returns_when_its_lease_ends(redis_server: RedisServer) -> None:
    async def main() -> None:
        caller = _caller(concurrency=2)
        clock = _Clock()
        dead, other = (_limiter(redis_server, clock_ms=clock) for _ in range(2))
        try:
            assert await _try(dead, caller) is not None
            clock.now_ms += 20_000
            assert await _try(other, caller) is not None
            clock.now_ms += 9_999
            assert await _try(other, caller) is None
            clock.now_ms += 2
            assert await _try(other, caller) is not None
            assert await _try(other, caller) is None
        finally:
            await other.close()
            await dead.close()

    _run(main())


def test_a_gateway_that_lives_keeps_what_it_holds(redis_server: RedisServer) -> None:
    async def main() -> None:
        caller = _caller(concurrency=1)
        clock = _Clock()
        alive, other = (_limiter(redis_server, clock_ms=clock) for _ in range(2))
        try:
            held = await _try(alive, caller)
            assert held is not None
            for _ in range(5):
                clock.now_ms += 20_000
                assert await _try(other, caller) is None
                await _shared_store(alive).renew(also_lost=False)
            await held.settle(1, 1)
            assert await _try(other, caller) is not None
        finally:
            await other.close()
            await alive.close()

    _run(main())


@pytest.mark.slow
def test_a_gateway_renews_what_it_holds_by_itself(redis_server: RedisServer) -> None:
    async def main() -> None:
        caller, clock = _caller(concurrency=1), _Clock()
        alive, other = (_limiter(redis_server, lease_ms=9_000, clock_ms=clock) for _ in range(2))
        client = redis.Redis.from_url(redis_server.url)

        async def is_renewed() -> bool:
            name = f"trident:{{{caller.account}}}:leases"
            return client.zcount(name, clock.now_ms + 9_000, "+inf") == 1

        try:
            assert await _try(alive, caller) is not None
            clock.now_ms += 8_000
            assert not await is_renewed()
            await alive.start()
            await _until(is_renewed)
            clock.now_ms += 8_000
            assert await _try(other, caller) is None
        finally:
            await other.close()
            await alive.close()
            client.close()

    _run(main())


def test_without_the_store_each_gateway_gives_out_its_share(
    own_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        limiter, caller = _limiter(own_server, num_replicas=2), _caller(concurrency=10)
        await limiter.start()
        shared = [await _try(limiter, caller) for _ in range(3)]
        assert all(shared)
        own_server.kill()
        local = [reservation for _ in range(20) if (reservation := await _try(limiter, caller)) is not None]
        assert len(local) == 5
        assert (limiter.is_store_up, limiter.num_store_losses) == (False, 1)
        for reservation in (*shared, *local):
            assert reservation is not None
            await reservation.settle(1, 1)
        assert limiter.num_held == 0
        own_server.start()

        async def is_up() -> bool:
            return limiter.is_store_up

        await _until(is_up)
        assert len([one for one in [await _try(limiter, caller) for _ in range(20)] if one is not None]) == 10
        await limiter.close()

    with caplog.at_level(logging.DEBUG):
        _run(main())
    said = [record.getMessage() for record in caplog.records if record.name.startswith("trident")]
    assert len(said) == 2
    assert own_server.url not in caplog.text


def test_without_the_store_a_closed_gateway_refuses(own_server: RedisServer) -> None:
    async def main() -> None:
        limiter, caller = _limiter(own_server, fails_open=False), _caller(concurrency=10)
        own_server.kill()
        with pytest.raises(ApiError) as caught:
            await limiter.reserve(caller, 1, 1)
        assert (caught.value.status, caught.value.code) == (503, "limits_unavailable")
        assert b"retry-after" in dict(caught.value.headers)
        await limiter.start()
        own_server.start()

        async def passes() -> bool:
            try:
                return await _try(limiter, caller) is not None
            except ApiError:
                return False

        await _until(passes)
        await limiter.close()

    _run(main())


@pytest.mark.slow
def test_a_store_that_does_not_answer_holds_nobody_up(own_server: RedisServer) -> None:
    async def main() -> None:
        limiter, caller = _limiter(own_server, num_replicas=1, timeout_s=2), _caller(concurrency=100)
        held = await _try(limiter, caller)
        assert held is not None
        own_server.pause()
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                ticks += 1
                await asyncio.sleep(0)

        ticking = asyncio.create_task(tick())
        assert await _try(limiter, caller) is not None
        # The loop went round while the store was waited for, once.
        assert ticks > 100
        assert all([await _try(limiter, caller) for _ in range(50)])
        assert limiter.num_store_losses == 1
        await held.settle(1, 1)
        ticking.cancel()
        own_server.resume()
        await limiter.close()

    _run(main())


@pytest.mark.slow
def test_what_was_settled_without_the_store_is_told_to_it_when_it_is_back(own_server: RedisServer) -> None:
    async def main() -> None:
        limiter = _limiter(own_server, num_replicas=1, timeout_s=2)
        caller = _caller(concurrency=2, tokens_per_day=10**6)
        settled, running = await limiter.reserve(caller, 100, 1000), await limiter.reserve(caller, 100, 1000)
        own_server.pause()
        # Another one finds the store gone, so that the settlement is never sent while it is.
        await limiter.reserve(_caller(concurrency=1), 1, 1)
        assert not limiter.is_store_up
        await settled.settle(100, 7)
        own_server.resume()
        await limiter.start()

        async def is_up() -> bool:
            return limiter.is_store_up

        await _until(is_up)
        await running.settle(100, 3)
        await limiter.reserve(caller, 0, 0)
        last = await limiter.reserve(caller, 0, 0)
        assert last._outcome is not None
        assert last._outcome.standing.day_used == 210
        await limiter.close()

    _run(main())


@pytest.mark.slow
def test_what_was_used_without_the_store_counts_to_the_shared_quota(own_server: RedisServer) -> None:
    async def main() -> None:
        limiter = _limiter(own_server, num_replicas=2, timeout_s=2)
        caller = _caller(output_tokens_per_minute=1000, tokens_per_month=10**6)
        own_server.pause()
        settled, running = await limiter.reserve(caller, 100, 100), await limiter.reserve(caller, 100, 100)
        await settled.settle(70, 7)
        own_server.resume()
        await limiter.start()

        async def is_up() -> bool:
            return limiter.is_store_up

        await _until(is_up)
        await running.settle(500, 5)
        last = await limiter.reserve(caller, 0, 0)
        assert last._outcome is not None
        assert last._outcome.standing.month_used == 582
        # The minute's limit is the shared one, of which nothing was used.
        assert dict(last.headers())[b"x-ratelimit-remaining-tokens"] == b"1000"
        await limiter.close()

    _run(main())


def test_a_store_that_forgot_everything_learns_who_runs(own_server: RedisServer) -> None:
    async def main() -> None:
        limiter, caller = _limiter(own_server, num_replicas=1), _caller(concurrency=2)
        held = [await limiter.reserve(caller, 1, 1) for _ in range(2)]
        own_server.kill()
        assert await _try(limiter, caller) is not None
        own_server.start()
        await limiter.start()

        async def is_up() -> bool:
            return limiter.is_store_up

        await _until(is_up)
        assert await _try(limiter, caller) is None
        await held[0].settle(1, 1)
        assert await _try(limiter, caller) is not None
        await limiter.close()

    _run(main())


def test_a_store_closes_though_its_client_swallows_that_it_is_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    """As `asyncio.wait_for`, by which the client sends, may do before Python 3.12."""

    async def main() -> None:
        store, is_asked, num_swallowed = RedisStore("redis://localhost", lease_ms=3), asyncio.Event(), 0

        async def ask(**_: object) -> list[int]:
            nonlocal num_swallowed
            is_asked.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                num_swallowed += 1
                if num_swallowed > 1:
                    raise
            return []

        monkeypatch.setattr(store, "_script", ask)
        store._leases["account"].add("lease")
        await store.start()
        await is_asked.wait()
        await store.close()
        assert store._heart is not None
        assert store._heart.cancelled()

    _run(main())


@pytest.mark.parametrize("url", ["", "localhost:6379", "http://localhost:6379"])
def test_a_url_that_is_none_is_refused_without_being_shown(url: str) -> None:
    with pytest.raises(ConfigError, match="--limits-store: is no URL") as caught:
        RedisStore(url)
    assert not url or url not in str(caught.value)


def test_the_settings_say_which_store_counts(redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    made = functools.partial(RedisStore, timeout_s=30)
    monkeypatch.setattr("trident_gateway.limits.redis.RedisStore", made)

    async def main() -> None:
        caller = _caller(concurrency=1)
        shared = GatewaySettings(limits_store=redis_server.url, num_replicas=2)
        limiters = [Limiter.of(shared), Limiter.of(shared), Limiter.of(GatewaySettings())]
        for limiter in limiters:
            await limiter.start()
        assert [await _try(limiter, caller) is not None for limiter in limiters] == [True, False, True]
        assert [limiter.is_store_up for limiter in limiters] == [True] * 3
        for limiter in limiters:
            await limiter.close()

    _run(main())
