"""The arithmetic of limits."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from trident_gateway.callers import CallerLimits
from trident_gateway.limits.standing import UNITS, Demand, Rate, Standing, day_of, month_of, shortage, too_large

_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
_MOMENTS = st.integers(0, 200 * 365 * 86_400_000)


def _standing(**values: int) -> Standing:
    nothing = dict.fromkeys(
        ("now_ms", "requests", "input_tokens", "output_tokens", "in_flight", "day_used", "month_used"), 0
    )
    return Standing(**{**nothing, **values})


@given(_MOMENTS)
def test_days_and_months_are_those_of_the_calendar(now_ms: int) -> None:
    moment = _EPOCH + timedelta(milliseconds=now_ms)
    assert day_of(now_ms) == (moment.date() - _EPOCH.date()).days
    assert month_of(now_ms) == moment.year * 12 + moment.month - 1


@given(_MOMENTS)
def test_a_month_used_up_waits_for_the_first_of_the_next(now_ms: int) -> None:
    limits = CallerLimits(tokens_per_month=10)
    found = shortage(limits, _standing(now_ms=now_ms, month_used=10), Demand(1, 0))
    assert found is not None
    moment = _EPOCH + timedelta(milliseconds=now_ms + found.wait_ms)
    assert (moment.day, moment.hour, moment.minute, moment.second, moment.microsecond) == (1, 0, 0, 0, 0)
    assert (moment - timedelta(milliseconds=1)).month == (_EPOCH + timedelta(milliseconds=now_ms)).month


@given(limit=st.integers(1, 10**9), need=st.integers(1, 10**9), level=st.integers(-(10**12), 10**12))
def test_the_wait_is_the_least_that_suffices(limit: int, need: int, level: int) -> None:
    rate = Rate("input_tokens", "tokens", limit, level, need)
    wanted = Fraction(min(need, limit)) - Fraction(level, UNITS)
    if not rate.is_short:
        assert wanted <= 0
        return
    gained = Fraction(limit, 60_000)
    assert gained * rate.wait_ms >= wanted > gained * (rate.wait_ms - 1)


def test_the_strictest_limit_refuses() -> None:
    limits = CallerLimits(
        requests_per_minute=60, input_tokens_per_minute=600, output_tokens_per_minute=60, concurrency=1
    )
    standing = _standing(requests=0, input_tokens=0, output_tokens=0, in_flight=1)
    found = shortage(limits, standing, Demand(input_tokens=100, output_tokens=20))
    assert found is not None
    assert (found.name, found.kind, found.wait_ms) == ("output_tokens", "tokens", 20_000)
    found = shortage(limits, standing, Demand(input_tokens=300, output_tokens=0))
    assert found is not None
    assert (found.name, found.wait_ms) == ("input_tokens", 30_000)


def test_a_quota_is_told_before_a_rate() -> None:
    limits = CallerLimits(requests_per_minute=1, tokens_per_day=10)
    late = 86_400_000 - 5
    found = shortage(limits, _standing(now_ms=late, day_used=8), Demand(3, 0))
    assert found is not None
    assert (found.name, found.kind, found.wait_ms) == ("day", "quota", 5)


def test_what_never_fits_is_known_before_anything_is_counted() -> None:
    limits = CallerLimits(input_tokens_per_minute=10, output_tokens_per_minute=20, tokens_per_month=25)
    assert too_large(limits, Demand(10, 15)) is None
    names = [
        getattr(too_large(limits, demand), "name", None) for demand in (Demand(11, 0), Demand(0, 21), Demand(10, 16))
    ]
    assert names == ["input_tokens", "output_tokens", "month"]
