"""What is left of a caller's limits at one moment, and what follows from it.

Owns the arithmetic of a limit a minute, in whole numbers: a token is 60,000 units, so that a limit of N a minute gains
N units in each millisecond, and nothing is ever rounded. The script of the shared store computes the same. Never looks
at a clock, never keeps anything.
"""

from __future__ import annotations

from dataclasses import dataclass

from trident_gateway.callers import CallerLimits

#: Units of one token or request.
UNITS = 60_000

#: Wait of a request that is refused because as many run as may run, when one of them ends being unknown.
_CONCURRENCY_WAIT_MS = 1_000

_DAY_MS = 86_400_000


@dataclass(frozen=True)
class Demand:
    """The tokens that one request wants to hold.

    Args:
        input_tokens: of its prompt.
        output_tokens: of its answer, as far as they are held from the beginning.
    """

    input_tokens: int
    output_tokens: int

    @property
    def tokens(self) -> int:
        """All of them, as quotas count."""
        return self.input_tokens + self.output_tokens


@dataclass(frozen=True)
class Standing:
    """An account as a store knows it.

    Args:
        now_ms: milliseconds since 1970, by the store's clock.
        requests: units that are left this minute; 0 where there is no such limit.
        input_tokens: likewise; below 0 where more was used than there was.
        output_tokens: likewise.
        in_flight: requests that run.
        day_used: tokens of this day of UTC, those that are held included.
        month_used: likewise, of this month.
    """

    now_ms: int
    requests: int
    input_tokens: int
    output_tokens: int
    in_flight: int
    day_used: int
    month_used: int


@dataclass(frozen=True)
class Rate:
    """One limit a minute, as it stands.

    Args:
        name: of the limit.
        kind: `requests` or `tokens`, in the words of OpenAI's errors and headers.
        limit: what there is after a quiet minute.
        level: units that are left.
        need: of the request.
    """

    name: str
    kind: str
    limit: int
    level: int
    need: int

    @property
    def is_short(self) -> bool:
        """Whether the request must wait; one that needs more than all of it waits for all of it."""
        return self._missing > 0

    @property
    def wait_ms(self) -> int:
        """Milliseconds until there is enough."""
        return -(-self._missing // self.limit)

    @property
    def _missing(self) -> int:
        return min(self.need, self.limit) * UNITS - self.level if self.need else 0

    @property
    def reset_ms(self) -> int:
        """Milliseconds until all of it is there again."""
        return -(-(self.limit * UNITS - self.level) // self.limit)

    @property
    def remaining(self) -> int:
        """Whole tokens or requests that are left."""
        return max(0, self.level // UNITS)


@dataclass(frozen=True)
class Shortage:
    """The limit that refuses a request: of several, the one that does so for the longest.

    Args:
        name: of the limit.
        kind: `requests` or `tokens`; `quota` for one of a day or a month.
        limit: its size.
        wait_ms: until the request would pass.
    """

    name: str
    kind: str
    limit: int
    wait_ms: int


def rates(limits: CallerLimits, standing: Standing, demand: Demand) -> list[Rate]:
    """Return the limits a minute that there are."""
    every = (
        ("requests", "requests", limits.requests_per_minute, standing.requests, 1),
        ("input_tokens", "tokens", limits.input_tokens_per_minute, standing.input_tokens, demand.input_tokens),
        ("output_tokens", "tokens", limits.output_tokens_per_minute, standing.output_tokens, demand.output_tokens),
    )
    return [Rate(name, kind, limit, level, need) for name, kind, limit, level, need in every if limit is not None]


def too_large(limits: CallerLimits, demand: Demand) -> Shortage | None:
    """Return the limit that a request exceeds by itself, whatever else happens; None if it can pass."""
    every = (
        ("input_tokens", "tokens", limits.input_tokens_per_minute, demand.input_tokens),
        ("output_tokens", "tokens", limits.output_tokens_per_minute, demand.output_tokens),
        ("day", "quota", limits.tokens_per_day, demand.tokens),
        ("month", "quota", limits.tokens_per_month, demand.tokens),
    )
    for name, kind, limit, need in every:
        if limit is not None and need > limit:
            return Shortage(name, kind, limit, 0)
    return None


def shortage(limits: CallerLimits, standing: Standing, demand: Demand) -> Shortage | None:
    """Return the limit that refuses a request now; None if there is room for it."""
    short = [rate for rate in rates(limits, standing, demand) if rate.is_short]
    found = [Shortage(rate.name, rate.kind, rate.limit, rate.wait_ms) for rate in short]
    if limits.concurrency is not None and standing.in_flight >= limits.concurrency:
        found.append(Shortage("concurrency", "requests", limits.concurrency, _CONCURRENCY_WAIT_MS))
    day = limits.tokens_per_day
    if day is not None and standing.day_used + min(demand.tokens, day) > day:
        found.append(Shortage("day", "quota", day, _DAY_MS - standing.now_ms % _DAY_MS))
    month = limits.tokens_per_month
    if month is not None and standing.month_used + min(demand.tokens, month) > month:
        found.append(Shortage("month", "quota", month, _until_next_month_ms(standing.now_ms)))
    # A quota is told before a rate: whoever has used it up need not try again in a minute.
    return max(found, key=lambda one: (one.kind == "quota", one.wait_ms), default=None)


def day_of(now_ms: int) -> int:
    """Return the number of the day of UTC, counted from 1970."""
    return now_ms // _DAY_MS


def month_of(now_ms: int) -> int:
    """Return the number of the month of UTC, counted from the year 0.

    Whole-number arithmetic (a year that begins in March has its leap day at its end), because the shared store's script
    has no calendar.
    """
    day = day_of(now_ms) + 719_468
    era, of_era = divmod(day, 146_097)
    year_of_era = (of_era - of_era // 1460 + of_era // 36_524 - of_era // 146_096) // 365
    of_year = of_era - (365 * year_of_era + year_of_era // 4 - year_of_era // 100)
    return (era * 400 + year_of_era) * 12 + (5 * of_year + 2) // 153 + 2


def _until_next_month_ms(now_ms: int) -> int:
    this = month_of(now_ms)
    day = day_of(now_ms) + 1
    while month_of(day * _DAY_MS) == this:
        day += 1
    return day * _DAY_MS - now_ms
