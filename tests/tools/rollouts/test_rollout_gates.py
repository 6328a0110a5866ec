"""The gates: what is worse is seen, and neither chance nor the width of a bucket is taken for it."""

from __future__ import annotations

import math
from random import Random

import pytest

from tests.tools.rollouts.sides import histogram, side
from trident_gateway.observing import metrics
from trident_tools.rollouts.figures import Histogram, SideFigures
from trident_tools.rollouts.gates import GateLimits, Outcome, judge, judge_servers

MET, UNCLEAR, BROKEN = Outcome.MET, Outcome.UNCLEAR, Outcome.BROKEN
TTFT = metrics._TTFT_BOUNDS
GAPS = metrics._GAP_BOUNDS


def _outcome(gate: str, canary: SideFigures, stable: SideFigures) -> Outcome:
    return next(verdict.outcome for verdict in judge(canary, stable, GateLimits()) if verdict.gate == gate)


@pytest.mark.parametrize(
    ("errors", "requests", "outcome"),
    [(0, 200, MET), (1, 200, MET), (2, 200, UNCLEAR), (10, 200, BROKEN), (3, 3, BROKEN), (1, 1, UNCLEAR)],
)
def test_errors_are_a_matter_of_chance_until_they_are_not(errors: int, requests: int, outcome: Outcome) -> None:
    assert _outcome("errors", side(requests, errors=errors), side(20_000)) is outcome


def test_errors_that_the_stable_side_has_as_well_are_no_fault() -> None:
    assert _outcome("errors", side(200, errors=10), side(2000, errors=100)) is MET


@pytest.mark.parametrize(("lengths", "outcome"), [(100, MET), (80, MET), (0, BROKEN), (200, BROKEN), (79, UNCLEAR)])
def test_finish_is_judged_either_way(lengths: int, outcome: Outcome) -> None:
    assert _outcome("finish", side(200, lengths=lengths), side(2000, lengths=1000)) is outcome


def test_refusals_of_what_the_stable_side_takes_are_seen() -> None:
    assert _outcome("refusals", side(200, refusals=40), side(2000)) is BROKEN
    assert _outcome("refusals", side(200, refusals=8), side(2000)) is MET


def test_servers_must_stay_up() -> None:
    assert judge_servers(side(0, ejections=1)).outcome is BROKEN
    assert judge_servers(side()).outcome is MET


@pytest.mark.parametrize("bound", TTFT)
def test_a_times_crossing_of_a_bound_is_no_slowness(bound: float) -> None:
    # All of the stable side just below a bound, all of the canary just above: by the buckets alone twice as slow.
    canary, stable = histogram([bound * 1.01] * 500, TTFT), histogram([bound * 0.99] * 500, TTFT)
    assert _outcome("ttft", side(ttft=canary), side(ttft=stable)) is MET


@pytest.mark.parametrize("base", [0.004, 0.011, 0.019, 0.07, 0.12, 0.36, 0.9, 1.1, 4.0, 12.0, 70.0])
def test_a_doubled_time_is_broken_wherever_the_bounds_lie(base: float) -> None:
    draw = Random(7)  # noqa: S311
    stable = [base * draw.lognormvariate(0, 0.4) for _ in range(2000)]
    canary = [2 * base * draw.lognormvariate(0, 0.4) for _ in range(200)]
    assert _outcome("ttft", side(ttft=histogram(canary, TTFT)), side(ttft=histogram(stable, TTFT))) is BROKEN
    assert _outcome("ttft", side(ttft=histogram(stable, TTFT)), side(ttft=histogram(stable, TTFT))) is MET


def test_a_slow_tail_is_broken_though_the_mean_is_the_same() -> None:
    # One of ten takes five times as long; the others are faster for it.
    canary = histogram([0.06] * 360 + [0.5] * 40, TTFT)
    stable = histogram([0.104] * 2000, TTFT)
    assert canary.mean == pytest.approx(stable.mean, rel=0.01)
    assert _outcome("ttft", side(ttft=canary), side(ttft=stable)) is BROKEN


def test_few_streams_break_nothing() -> None:
    canary, stable = histogram([1.0] * 10, TTFT), histogram([0.1] * 1000, TTFT)
    assert _outcome("ttft", side(ttft=canary), side(ttft=stable)) is UNCLEAR


def test_times_within_a_stream_are_no_independent_evidence() -> None:
    draw = Random(3)  # noqa: S311

    def gaps(streams: int, mean: float) -> Histogram:
        # Each stream has a pace of its own.
        paces = [mean * draw.lognormvariate(0, 0.8) for _ in range(streams)]
        return histogram([pace for pace in paces for _ in range(20)], GAPS)

    verdicts = [
        _outcome(
            "itl",
            side(itl=gaps(200, 0.02), ttft=histogram([0.1] * 200, TTFT)),
            side(itl=gaps(400, 0.02), ttft=histogram([0.1] * 400, TTFT)),
        )
        for _ in range(30)
    ]
    assert verdicts.count(BROKEN) <= 1


@pytest.mark.parametrize("rate", [0.0, 0.01])
def test_an_equal_canary_is_hardly_ever_called_broken(rate: float) -> None:
    draw = Random(11)  # noqa: S311
    num_broken = 0
    for _ in range(60):
        errors = [sum(draw.random() < rate for _ in range(count)) for count in (200, 2000)]
        times = [[0.2 * draw.lognormvariate(0, 0.6) for _ in range(count)] for count in (200, 400)]
        lengths = [sum(draw.random() < 0.4 for _ in range(count)) for count in (200, 2000)]
        canary, stable = (
            side(count, errors=failed, lengths=ended, ttft=histogram(seconds, TTFT))
            for count, failed, ended, seconds in zip((200, 2000), errors, lengths, times, strict=True)
        )
        num_broken += any(verdict.outcome is BROKEN for verdict in judge(canary, stable, GateLimits()))
    assert num_broken <= 1


def test_a_percentile_is_that_of_prometheus() -> None:
    # histogram_quantile(0.95, ...) of 100 observations: 90 up to 1, 10 up to 2, none above.
    assert Histogram({1.0: 90, 2.0: 10, math.inf: 0}, 0).quantile(0.95) == pytest.approx(1.5)
    assert Histogram({1.0: 100, math.inf: 0}, 0).quantile(0.95) == pytest.approx(0.95)
    assert Histogram({1.0: 1, math.inf: 99}, 0).quantile(0.95) == 1.0
    assert math.isnan(Histogram().quantile(0.95))


def test_nothing_to_compare_breaks_nothing() -> None:
    assert {verdict.outcome for verdict in judge(SideFigures(), SideFigures(), GateLimits())} == {MET}
