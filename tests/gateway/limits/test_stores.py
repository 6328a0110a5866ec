"""Both stores: the same histories, step by step, beside a plain model that knows fractions."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime, timezone
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.gateway.limits.redis_servers import RedisServer
from trident_gateway.callers import CallerLimits
from trident_gateway.limits.memory import MemoryStore
from trident_gateway.limits.redis import RedisStore
from trident_gateway.limits.standing import UNITS, Demand, Standing, shortage
from trident_gateway.limits.store import Hold, LimitStore

_START_MS = int(datetime(2027, 1, 30, 22, tzinfo=timezone.utc).timestamp() * 1000)
_numbers = itertools.count()

OpenStore = Callable[[Callable[[], int]], AbstractAsyncContextManager[LimitStore]]


@pytest.fixture(scope="module", params=["memory", pytest.param("redis", marks=pytest.mark.slow)])
def open_store(request: pytest.FixtureRequest) -> OpenStore:
    """Return what opens a store of either kind on a clock."""
    server: RedisServer | None = request.getfixturevalue("redis_server") if request.param == "redis" else None

    @asynccontextmanager
    async def opened(clock_ms: Callable[[], int]) -> AsyncIterator[LimitStore]:
        if server is None:
            yield MemoryStore(clock_ms)
            return
        # Leases of these histories end when they are ended, and not by themselves.
        store = RedisStore(server.url, clock_ms=clock_ms, lease_ms=10**12, timeout_s=30)
        try:
            yield store
        finally:
            await store.close()

    return opened


@dataclass
class _Clock:
    now_ms: int = _START_MS

    def __call__(self) -> int:
        return self.now_ms


@dataclass
class _Running:
    hold: Hold
    held: Demand
    taken_at_ms: int


@dataclass
class _Model:
    """What an account is, in the plainest way: tokens are fractions, and days and months those of the calendar."""

    limits: CallerLimits
    now_ms: int = _START_MS
    running: int = 0
    used: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.full = [
            self.limits.requests_per_minute,
            self.limits.input_tokens_per_minute,
            self.limits.output_tokens_per_minute,
        ]
        self.left = [Fraction(full or 0) for full in self.full]

    def pass_time(self, milliseconds: int) -> None:
        self.now_ms += milliseconds
        for index, full in enumerate(self.full):
            if full is not None:
                self.left[index] = min(Fraction(full), self.left[index] + Fraction(full * milliseconds, 60_000))

    def spend(self, needs: tuple[int, int, int], at_ms: int) -> None:
        for index, full in enumerate(self.full):
            if full is not None:
                self.left[index] = min(Fraction(full), self.left[index] - needs[index])
        moment = datetime.fromtimestamp(at_ms / 1000, timezone.utc)
        for window in (f"{moment:%Y-%m-%d}", f"{moment:%Y-%m}"):
            self.used[window] = self.used.get(window, 0) + needs[1] + needs[2]

    def allows(self, demand: Demand) -> bool:
        needs = (1, demand.input_tokens, demand.output_tokens)
        if any(
            full and need and left < min(need, full)
            for full, need, left in zip(self.full, needs, self.left, strict=True)
        ):
            return False
        if self.limits.concurrency is not None and self.running >= self.limits.concurrency:
            return False
        quotas = ((self.limits.tokens_per_day, self.day_used), (self.limits.tokens_per_month, self.month_used))
        return all(quota is None or used + min(demand.tokens, quota) <= quota for quota, used in quotas)

    @property
    def day_used(self) -> int:
        return self.used.get(f"{datetime.fromtimestamp(self.now_ms / 1000, timezone.utc):%Y-%m-%d}", 0)

    @property
    def month_used(self) -> int:
        return self.used.get(f"{datetime.fromtimestamp(self.now_ms / 1000, timezone.utc):%Y-%m}", 0)

    def standing(self) -> Standing:
        units = [left * UNITS for left in self.left]
        assert all(unit.denominator == 1 for unit in units)
        requests, input_tokens, output_tokens = (int(unit) for unit in units)
        return Standing(
            self.now_ms, requests, input_tokens, output_tokens, self.running, self.day_used, self.month_used
        )


_tokens = st.integers(0, 120)
_steps = st.one_of(
    st.tuples(st.just("wait"), st.one_of(st.integers(1, 90_000), st.integers(1, 2 * 86_400_000)), st.just(0)),
    st.tuples(st.just("take"), _tokens, _tokens),
    st.tuples(st.just("take"), _tokens, _tokens),
    st.tuples(st.just("correct"), _tokens, st.just(0)),
    st.tuples(st.just("settle"), _tokens, st.integers(0, 300)),
    st.tuples(st.just("settle twice"), _tokens, st.integers(0, 300)),
)
_limit = st.none() | st.integers(1, 200)
_limits = st.builds(
    CallerLimits,
    requests_per_minute=_limit,
    input_tokens_per_minute=_limit,
    output_tokens_per_minute=_limit,
    concurrency=st.none() | st.integers(1, 3),
    tokens_per_day=st.none() | st.integers(1, 400),
    tokens_per_month=st.none() | st.integers(1, 900),
)


@settings(deadline=None, max_examples=80)
@given(limits=_limits, steps=st.lists(_steps, max_size=40), data=st.data())
def test_a_store_does_what_the_model_does(
    open_store: OpenStore, limits: CallerLimits, steps: list[tuple[str, int, int]], data: st.DataObject
) -> None:
    asyncio.run(_follow(open_store, limits, steps, data))


async def _follow(
    open_store: OpenStore, limits: CallerLimits, steps: list[tuple[str, int, int]], data: st.DataObject
) -> None:
    clock, model, running = _Clock(), _Model(limits), list[_Running]()
    account = f"history-{next(_numbers)}"
    async with open_store(clock) as store:
        for action, first, second in steps:
            if action == "wait":
                clock.now_ms += first
                model.pass_time(first)
            elif action == "take":
                demand = Demand(first, second)
                hold = Hold(account, limits, f"lease-{next(_numbers)}")
                outcome = await store.take(hold, demand)
                assert outcome.is_taken == model.allows(demand)
                assert outcome.is_taken == (shortage(limits, model.standing(), demand) is None)
                if outcome.is_taken:
                    model.running += 1
                    model.spend((1, first, second), model.now_ms)
                    running.append(_Running(hold, demand, clock.now_ms))
                assert outcome.standing == model.standing()
            elif running:
                one = data.draw(st.sampled_from(running))
                is_last = action != "correct"
                held = Demand(first, second if is_last else one.held.output_tokens)
                more = Demand(held.input_tokens - one.held.input_tokens, held.output_tokens - one.held.output_tokens)
                model.spend((0, more.input_tokens, more.output_tokens), one.taken_at_ms)
                for _ in range(2 if action == "settle twice" else 1):
                    await store.adjust(one.hold, more, taken_at_ms=one.taken_at_ms, is_last=is_last)
                one.held = held
                if is_last:
                    model.running -= 1
                    running.remove(one)
        for one in running:
            more = Demand(-one.held.input_tokens, -one.held.output_tokens)
            model.spend((0, more.input_tokens, more.output_tokens), one.taken_at_ms)
            await store.adjust(one.hold, more, taken_at_ms=one.taken_at_ms, is_last=True)
        model.running = 0
        unlimited = Hold(account, limits, f"lease-{next(_numbers)}")
        last = (await store.take(unlimited, Demand(0, 0))).standing
        assert last.in_flight <= 1
        assert (last.day_used, last.month_used) == (model.day_used, model.month_used)
        assert min(last.day_used, last.month_used) >= 0


def test_a_limit_that_is_new_begins_full(open_store: OpenStore) -> None:
    async def main() -> None:
        account = f"new-{next(_numbers)}"
        async with open_store(_Clock()) as store:
            await store.take(Hold(account, CallerLimits(concurrency=9), "one"), Demand(50, 0))
            limits = CallerLimits(input_tokens_per_minute=100)
            outcome = await store.take(Hold(account, limits, "two"), Demand(100, 0))
            assert outcome.is_taken
            assert outcome.standing.input_tokens == 0

    asyncio.run(main())


def test_a_clock_that_goes_back_gives_nothing(open_store: OpenStore) -> None:
    async def main() -> None:
        account, clock = f"back-{next(_numbers)}", _Clock()
        limits = CallerLimits(input_tokens_per_minute=100)
        async with open_store(clock) as store:
            await store.take(Hold(account, limits, "one"), Demand(100, 0))
            clock.now_ms -= 3_600_000
            assert not (await store.take(Hold(account, limits, "two"), Demand(1, 0))).is_taken
            clock.now_ms += 600
            assert (await store.take(Hold(account, limits, "three"), Demand(1, 0))).is_taken

    asyncio.run(main())


def test_what_was_taken_yesterday_is_given_back_to_yesterday(open_store: OpenStore) -> None:
    async def main() -> None:
        account, clock = f"days-{next(_numbers)}", _Clock()
        limits = CallerLimits(tokens_per_day=1000, tokens_per_month=1000)
        async with open_store(clock) as store:
            old, new = (Hold(account, limits, f"{account}-{name}") for name in ("old", "new"))
            await store.take(old, Demand(300, 0))
            taken_at_ms, clock.now_ms = clock.now_ms, clock.now_ms + 86_400_000
            await store.take(new, Demand(50, 0))
            await store.adjust(old, Demand(-200, 0), taken_at_ms=taken_at_ms, is_last=True)
            standing = (await store.take(Hold(account, limits, f"{account}-last"), Demand(0, 0))).standing
            assert (standing.day_used, standing.month_used) == (50, 150)
            taken_at_ms, clock.now_ms = clock.now_ms, clock.now_ms + 2 * 86_400_000
            await store.take(Hold(account, limits, f"{account}-february"), Demand(30, 0))
            await store.adjust(new, Demand(-50, 0), taken_at_ms=taken_at_ms, is_last=True)
            standing = (await store.take(Hold(account, limits, f"{account}-end"), Demand(0, 0))).standing
            assert (standing.day_used, standing.month_used) == (30, 30)

    asyncio.run(main())
