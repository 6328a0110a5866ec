"""What a client is told of its limits, and that every way out of a request gives back what it held."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Coroutine
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.gateway.limits.redis_servers import RedisServer
from trident_gateway.callers import ANYBODY, Caller, CallerLimits
from trident_gateway.errors import ApiError, QuotaError, RateLimitError, TooLargeForLimitError
from trident_gateway.limits.limiter import Limiter, Reservation
from trident_gateway.limits.memory import MemoryStore
from trident_gateway.limits.redis import RedisStore
from trident_gateway.limits.shared import SharedStore
from trident_gateway.limits.standing import Demand
from trident_gateway.limits.store import Hold, LimitStore, Outcome

_numbers = itertools.count()


class _Clock:
    def __init__(self) -> None:
        self.now_ms = 1_800_000_000_000

    def __call__(self) -> int:
        return self.now_ms


def _caller(**limits: int) -> Caller:
    name = f"caller-{next(_numbers)}"
    return Caller(name, name, "tenant", limits=CallerLimits(**limits))


def _run(main: Coroutine[Any, Any, None]) -> None:
    async def bounded() -> None:
        await asyncio.wait_for(main, 60)

    asyncio.run(bounded())


async def _refused(limiter: Limiter, caller: Caller, input_tokens: int, output_tokens: int) -> ApiError:
    with pytest.raises(ApiError) as caught:
        await limiter.reserve(caller, input_tokens, output_tokens)
    return caught.value


def _answer(error: ApiError) -> dict[str, str | int | None]:
    headers = {name.decode(): value.decode() for name, value in error.headers}
    return {"status": error.status, "type": error.type, "code": error.code, "param": error.param, **headers}


def test_a_request_too_many_is_told_when_to_try_again() -> None:
    async def main() -> None:
        clock = _Clock()
        limiter, caller = Limiter(MemoryStore(clock)), _caller(requests_per_minute=7)
        for _ in range(7):
            await limiter.reserve(caller, 1, 1)
        error = await _refused(limiter, caller, 1, 1)
        assert isinstance(error, RateLimitError)
        assert _answer(error) == {
            "status": 429,
            "type": "requests",
            "code": "rate_limit_exceeded",
            "param": None,
            "retry-after": "9",
            "retry-after-ms": "8572",
            "x-ratelimit-limit-requests": "7",
            "x-ratelimit-remaining-requests": "0",
            "x-ratelimit-reset-requests": "1m0s",
        }
        clock.now_ms += 8571
        await _refused(limiter, caller, 1, 1)
        clock.now_ms += 1
        await limiter.reserve(caller, 1, 1)

    _run(main())


@pytest.mark.parametrize("limit", ["input_tokens_per_minute", "output_tokens_per_minute"])
def test_tokens_too_many_are_of_type_tokens(limit: str) -> None:
    async def main() -> None:
        limiter, caller = Limiter(MemoryStore(_Clock())), _caller(**{limit: 600})
        await limiter.reserve(caller, 570, 570)
        error = await _refused(limiter, caller, 100, 100)
        answer = _answer(error)
        assert (answer["status"], answer["type"], answer["code"]) == (429, "tokens", "rate_limit_exceeded")
        assert (answer["retry-after"], answer["retry-after-ms"]) == ("7", "7000")
        assert (answer["x-ratelimit-limit-tokens"], answer["x-ratelimit-remaining-tokens"]) == ("600", "30")
        assert answer["x-ratelimit-reset-tokens"] == "57s"
        assert limiter.num_refused == {limit.removesuffix("_per_minute"): 1}

    _run(main())


def test_requests_at_the_same_time_are_limited_and_return() -> None:
    async def main() -> None:
        limiter, caller = Limiter(MemoryStore(_Clock())), _caller(concurrency=2)
        held = [await limiter.reserve(caller, 1, 1) for _ in range(2)]
        answer = _answer(await _refused(limiter, caller, 1, 1))
        assert (answer["status"], answer["type"], answer["retry-after"]) == (429, "requests", "1")
        await held[0].settle(1, 1)
        await held[0].settle(1, 1)
        await limiter.reserve(caller, 1, 1)
        await _refused(limiter, caller, 1, 1)

    _run(main())


@pytest.mark.parametrize("quota", ["tokens_per_day", "tokens_per_month"])
def test_a_quota_that_is_used_up_is_not_tried_again(quota: str) -> None:
    async def main() -> None:
        limiter, caller = Limiter(MemoryStore(_Clock())), _caller(**{quota: 100})
        await (await limiter.reserve(caller, 50, 40)).settle(50, 45)
        error = await _refused(limiter, caller, 3, 3)
        assert isinstance(error, QuotaError)
        expected = {"status": 429, "type": "insufficient_quota", "code": "insufficient_quota", "param": None}
        assert _answer(error) == {**expected, "x-should-retry": "false"}
        await limiter.reserve(caller, 2, 3)

    _run(main())


@pytest.mark.parametrize(
    ("limits", "name"),
    [
        ({"input_tokens_per_minute": 9}, "input_tokens"),
        ({"output_tokens_per_minute": 9}, "output_tokens"),
        ({"tokens_per_day": 19}, "day"),
        ({"tokens_per_month": 19}, "month"),
    ],
)
def test_a_request_that_never_fits_is_the_requests_fault(limits: dict[str, int], name: str) -> None:
    async def main() -> None:
        error = await _refused(Limiter(MemoryStore(_Clock())), _caller(**limits), 10, 10)
        assert isinstance(error, TooLargeForLimitError)
        expected = {
            "status": 400,
            "type": "invalid_request_error",
            "code": "request_too_large_for_limit",
            "param": None,
        }
        assert _answer(error) == {**expected, "x-should-retry": "false"}
        assert error.limit == name
        assert str(next(iter(limits.values()))) in error.message

    _run(main())


def test_headers_show_the_nearer_of_two_limits_of_tokens() -> None:
    async def main() -> None:
        limits = {"requests_per_minute": 100, "input_tokens_per_minute": 1000, "output_tokens_per_minute": 360}
        reservation = await Limiter(MemoryStore(_Clock())).reserve(_caller(**limits), 10, 36)
        assert dict(reservation.headers()) == {
            b"x-ratelimit-limit-requests": b"100",
            b"x-ratelimit-remaining-requests": b"99",
            b"x-ratelimit-reset-requests": b"600ms",
            b"x-ratelimit-limit-tokens": b"360",
            b"x-ratelimit-remaining-tokens": b"324",
            b"x-ratelimit-reset-tokens": b"6s",
        }

    _run(main())


def test_an_answer_longer_than_its_reserve_is_paid_for_afterwards() -> None:
    async def main() -> None:
        clock = _Clock()
        caller = _caller(output_tokens_per_minute=100, output_reserve=10)
        limiter = Limiter(MemoryStore(clock))
        reservation = await limiter.reserve(caller, 1, 4096)
        await reservation.settle(1, 160)
        answer = _answer(await _refused(limiter, caller, 1, 10))
        assert answer["retry-after-ms"] == "42000"
        assert answer["x-ratelimit-remaining-tokens"] == "0"

    _run(main())


def test_the_estimate_of_the_prompt_is_corrected_at_once() -> None:
    async def main() -> None:
        limiter, caller = Limiter(MemoryStore(_Clock())), _caller(input_tokens_per_minute=100)
        reservation = await limiter.reserve(caller, 90, 0)
        reservation.correct_input(20)
        await asyncio.sleep(0)
        other = await limiter.reserve(caller, 80, 0)
        await reservation.settle(None, 5)
        await other.settle(0, 0)
        await limiter.reserve(caller, 80, 0)
        await _refused(limiter, caller, 1, 0)

    _run(main())


def test_a_caller_without_limits_costs_no_store() -> None:
    async def main() -> None:
        reservation = await Limiter(_StoreThatHolds()).reserve(ANYBODY, 10**9, 10**9)
        reservation.correct_input(3)
        await reservation.settle(3, 4)
        assert reservation.headers() == []

    _run(main())


class _StoreThatHolds(MemoryStore):
    """Carries a call out when it is let go, as a distant store does."""

    def __init__(self) -> None:
        super().__init__(_Clock())
        self.gate = asyncio.Event()
        self.num_waiting = 0

    async def take(self, hold: Hold, demand: Demand) -> Outcome:
        self.num_waiting += 1
        await self.gate.wait()
        return await super().take(hold, demand)

    async def adjust(self, hold: Hold, more: Demand, *, taken_at_ms: int, is_last: bool) -> None:
        self.num_waiting += 1
        await self.gate.wait()
        await super().adjust(hold, more, taken_at_ms=taken_at_ms, is_last=is_last)


def test_a_client_that_leaves_while_it_is_counted_holds_nothing() -> None:
    async def main() -> None:
        store = _StoreThatHolds()
        limiter = Limiter(store)
        caller = _caller(concurrency=1, tokens_per_day=1100)
        request = asyncio.ensure_future(limiter.reserve(caller, 500, 500))
        while not store.num_waiting:
            await asyncio.sleep(0)
        request.cancel()
        with pytest.raises(asyncio.CancelledError):
            await request
        store.gate.set()
        await limiter.close()
        assert (store.num_in_flight, limiter.num_held) == (0, 0)
        await (await limiter.reserve(caller, 500, 500)).settle(100, 100)

    _run(main())


def test_a_settlement_survives_the_request_that_is_cancelled() -> None:
    async def main() -> None:
        store = _StoreThatHolds()
        store.gate.set()
        limiter = Limiter(store)
        reservation = await limiter.reserve(_caller(concurrency=1), 5, 5)
        store.gate.clear()
        store.num_waiting = 0
        settling = asyncio.ensure_future(reservation.settle(5, 5))
        while not store.num_waiting:
            await asyncio.sleep(0)
        settling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await settling
        store.gate.set()
        await limiter.close()
        assert (store.num_in_flight, limiter.num_held) == (0, 0)

    _run(main())


_ways_out = st.lists(
    st.tuples(
        st.integers(0, 50),
        st.integers(0, 50),
        st.sampled_from(["settles", "settles twice", "corrects", "crashes", "is cancelled", "is cancelled early"]),
        st.integers(0, 60),
        st.integers(0, 60),
    ),
    max_size=30,
)


@pytest.mark.parametrize("kind", ["memory", pytest.param("redis", marks=pytest.mark.slow)])
def test_whatever_becomes_of_requests_what_was_used_is_what_was_settled(
    kind: str, request: pytest.FixtureRequest
) -> None:
    server: RedisServer | None = request.getfixturevalue("redis_server") if kind == "redis" else None

    @settings(deadline=None, max_examples=60)
    @given(_ways_out)
    def histories(ways: list[tuple[int, int, str, int, int]]) -> None:
        _run(_all_ways_out(server, ways))

    histories()


async def _all_ways_out(server: RedisServer | None, ways: list[tuple[int, int, str, int, int]]) -> None:
    store: LimitStore = MemoryStore()
    if server is not None:
        store = SharedStore(RedisStore(server.url, timeout_s=30), num_replicas=1, fails_open=False)
    limiter = Limiter(store)
    # A month, so that a history that runs at midnight is counted as a whole.
    caller = _caller(concurrency=1000, tokens_per_month=10**6)
    settled = 0

    async def serve(input_tokens: int, output_tokens: int, way: str, used_input: int, used_output: int) -> None:
        nonlocal settled
        reservation: Reservation | None = None
        used = (0, 0)
        try:
            if way == "is cancelled early":
                asyncio.get_running_loop().call_soon(_this_task().cancel)
            reservation = await limiter.reserve(caller, input_tokens, output_tokens)
            used = (used_input, used_output)
            settled += used_input + used_output
            if way == "corrects":
                reservation.correct_input(used_input)
            if way == "is cancelled":
                _this_task().cancel()
                await asyncio.sleep(0)
            if way == "crashes":
                raise RuntimeError
            if way == "settles twice":
                await reservation.settle(*used)
        finally:
            if reservation is not None:
                await reservation.settle(*used)

    await asyncio.gather(*(serve(*way) for way in ways), return_exceptions=True)
    await limiter.close()
    store = MemoryStore() if server is None else RedisStore(server.url, timeout_s=30)
    assert limiter.num_held == 0
    last = await (limiter._store if server is None else store).take(
        Hold(caller.account, caller.limits, "last"), Demand(0, 0)
    )
    assert last.standing.in_flight == 1
    assert last.standing.month_used == settled
    await store.close()


def _this_task() -> asyncio.Task[Any]:
    task = asyncio.current_task()
    assert task is not None
    return task
