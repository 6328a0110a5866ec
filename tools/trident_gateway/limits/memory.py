"""Limits that are counted in this process.

Owns the accounts of one gateway. They begin anew with each process; quotas that must outlive it need a shared store.
Never waits for anything: every call is done when it returns.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from trident_gateway.callers import CallerLimits
from trident_gateway.limits.standing import UNITS, Demand, Standing, day_of, month_of, shortage
from trident_gateway.limits.store import Hold, Outcome


def wall_clock_ms() -> int:
    """Return milliseconds since 1970."""
    return time.time_ns() // 1_000_000


class MemoryStore:
    """Counts in this process.

    Args:
        clock_ms: tells the time, in milliseconds since 1970.
    """

    def __init__(self, clock_ms: Callable[[], int] = wall_clock_ms) -> None:
        self._clock_ms = clock_ms
        self._accounts: dict[str, _Account] = {}

    @property
    def num_in_flight(self) -> int:
        """Requests that hold something."""
        return sum(len(account.leases) for account in self._accounts.values())

    async def take(self, hold: Hold, demand: Demand) -> Outcome:
        """Take everything that a request demands, or nothing."""
        now_ms = self._clock_ms()
        account = self._accounts.get(hold.account)
        if account is None:
            account = self._accounts[hold.account] = _Account(now_ms)
        account.pass_time(hold.limits, now_ms)
        if shortage(hold.limits, account.standing(), demand) is not None:
            return Outcome(is_taken=False, standing=account.standing(), limits=hold.limits)
        account.take(demand, num_requests=1)
        account.leases.add(hold.lease)
        return Outcome(is_taken=True, standing=account.standing(), limits=hold.limits)

    async def adjust(self, hold: Hold, more: Demand, *, taken_at_ms: int, is_last: bool) -> None:
        """Take more, or give back; nothing, if the request holds nothing any longer."""
        account = self._accounts.get(hold.account)
        if account is None or hold.lease not in account.leases:
            return
        account.pass_time(hold.limits, self._clock_ms())
        account.adjust(hold.limits, more, taken_at_ms)
        if is_last:
            account.leases.remove(hold.lease)

    async def start(self) -> None:
        """Do nothing: there is nothing to keep alive."""

    async def close(self) -> None:
        """Do nothing: there is nothing to let go of."""


class _Account:
    """What one account has left and has used.

    A limit that an account did not have before begins full, so there is no level for what is not limited.
    """

    def __init__(self, now_ms: int) -> None:
        self._now_ms = now_ms
        self._levels: list[int | None] = [None, None, None]
        self._day = self._month = 0
        self._day_used = self._month_used = 0
        self.leases: set[str] = set()

    def standing(self) -> Standing:
        """Return what there is, as of the time that has passed."""
        requests, input_tokens, output_tokens = (level or 0 for level in self._levels)
        return Standing(
            now_ms=self._now_ms,
            requests=requests,
            input_tokens=input_tokens,
            output_tokens=output_tokens,
            in_flight=len(self.leases),
            day_used=self._day_used,
            month_used=self._month_used,
        )

    def pass_time(self, limits: CallerLimits, now_ms: int) -> None:
        """Let limits recover until now, and begin a new day or month."""
        passed_ms = max(0, now_ms - self._now_ms)
        for index, limit in enumerate(_per_minute(limits)):
            level = self._levels[index]
            if limit is None:
                self._levels[index] = None
            elif level is None:
                self._levels[index] = limit * UNITS
            else:
                self._levels[index] = min(limit * UNITS, level + limit * passed_ms)
        self._now_ms = now_ms
        day, month = day_of(now_ms), month_of(now_ms)
        if day != self._day:
            self._day, self._day_used = day, 0
        if month != self._month:
            self._month, self._month_used = month, 0

    def take(self, demand: Demand, *, num_requests: int) -> None:
        """Take what was found to be there."""
        for index, need in enumerate((num_requests, demand.input_tokens, demand.output_tokens)):
            level = self._levels[index]
            if level is not None:
                self._levels[index] = level - need * UNITS
        self._day_used += demand.tokens
        self._month_used += demand.tokens

    def adjust(self, limits: CallerLimits, more: Demand, taken_at_ms: int) -> None:
        """Take more or give back, as of the day and the month in which it was taken."""
        needs = (0, more.input_tokens, more.output_tokens)
        for index, (limit, need, level) in enumerate(zip(_per_minute(limits), needs, self._levels, strict=True)):
            if limit is not None and level is not None:
                self._levels[index] = min(limit * UNITS, level - need * UNITS)
        if day_of(taken_at_ms) == self._day:
            self._day_used = max(0, self._day_used + more.tokens)
        if month_of(taken_at_ms) == self._month:
            self._month_used = max(0, self._month_used + more.tokens)


def _per_minute(limits: CallerLimits) -> tuple[int | None, int | None, int | None]:
    return limits.requests_per_minute, limits.input_tokens_per_minute, limits.output_tokens_per_minute
