"""The stages as a machine, under random histories and under those that have names."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.tools.rollouts.sides import side
from trident_ensemble.contract.errors import ConfigError
from trident_tools.rollouts.figures import Window
from trident_tools.rollouts.gates import GateLimits, Outcome
from trident_tools.rollouts.machine import Phase, Plan, Progress, Sight, advance, begin, undo

PLAN = Plan(stages=(1.0, 10.0, 100.0), hold_s=10.0, max_hold_s=30.0, warm_up_s=0.0, min_requests=200, patience_s=5.0)
GOOD = Window(side(1000), side(100))


def _see(progress: Progress, counted: Window = GOOD, elapsed_s: float = 2.0, **fields: object) -> Progress:
    sight = Sight(elapsed_s, frozenset({progress.weight}), counted=counted)
    return advance(PLAN, progress, replace(sight, **fields))  # type: ignore[arg-type]


def _go(progress: Progress, until: Phase, **fields: object) -> Progress:
    for _ in range(100):
        progress = _see(progress, **fields)  # type: ignore[arg-type]
        if progress.phase is until:
            return progress
    raise AssertionError(progress)


def test_a_good_canary_gets_all_callers_stage_by_stage() -> None:
    progress, weights = begin(PLAN), []
    while not progress.is_over:
        weights.append(progress.weight)
        # At 100 % there is no stable side any more.
        counted = GOOD if progress.weight < 100 else Window(canary=side(100))
        progress = _see(progress, counted)
    assert progress.phase is Phase.DONE
    assert sorted(set(weights)) == [1.0, 10.0, 100.0]
    # Each stage settles once and is held for five sights of two seconds.
    assert [weights.count(weight) for weight in (1.0, 10.0, 100.0)] == [6, 6, 6]


@pytest.mark.parametrize(
    ("counted", "reason"),
    [
        (Window(side(1000), side(200, errors=10)), "errors"),
        (Window(side(1000), side(200, lengths=200)), "finish"),
        (Window(side(1000), side(200, ejections=1)), "ejections"),
    ],
)
def test_a_broken_gate_undoes_at_once(counted: Window, reason: str) -> None:
    progress = _see(_see(begin(PLAN)), counted)
    assert (progress.phase, progress.weight, progress.reason) == (Phase.UNDOING, 0.0, reason)
    assert _see(progress).phase is Phase.UNDONE


def test_a_stage_waits_for_requests_and_is_undone_without() -> None:
    progress = _go(_see(begin(PLAN)), Phase.UNDOING, counted=Window(side(1000), side(10)))
    assert (progress.reason, progress.held_s) == ("too_few_requests", 30.0)


def test_a_gate_that_stays_unclear_undoes() -> None:
    # Twice as many errors as are allowed, of too few requests to be sure.
    progress = _see(_see(begin(PLAN)), Window(side(1000), side(200, errors=2)))
    assert progress.phase is Phase.WATCHING
    progress = _go(progress, Phase.UNDOING, counted=Window())
    assert (progress.reason, progress.weight) == ("unclear", 0.0)


def test_gateways_that_vanish_undo() -> None:
    progress = _see(begin(PLAN))
    for _ in range(2):
        progress = _see(progress, weights=None)
        assert progress.phase is Phase.WATCHING
    progress = _see(progress, weights=None)
    assert (progress.phase, progress.reason) == (Phase.UNDOING, "unreadable")
    # Nobody confirms the weight 0; there is an end all the same.
    assert _go(progress, Phase.UNDONE, weights=None).weight == 0.0


def test_a_window_begins_when_every_gateway_shows_the_weight() -> None:
    progress = begin(PLAN)
    for _ in range(2):
        progress = _see(progress, weights=frozenset({0.0, 1.0}))
        assert (progress.phase, progress.window) == (Phase.SETTLING, Window())
    progress = _see(progress)
    assert (progress.phase, progress.window) == (Phase.WATCHING, Window())
    lost = begin(PLAN)
    for _ in range(3):
        lost = _see(lost, weights=frozenset({0.0, 1.0}))
    assert lost.reason == "weight_not_shown"


def test_a_canary_that_is_not_ready_any_more_is_undone() -> None:
    progress = _go(_see(begin(PLAN)), Phase.UNDOING, has_ready_canary=False)
    assert (progress.reason, progress.unready_s) == ("not_ready", 6.0)


def test_an_end_is_an_end() -> None:
    undone = _see(undo(_see(begin(PLAN)), "interrupted"))
    assert undone.phase is Phase.UNDONE
    assert _see(undone) == undo(undone, "errors") == undone


@pytest.mark.parametrize("stages", [(), (0.0, 10.0), (10.0, 10.0), (50.0, 10.0), (100.0,), (10.0, 101.0)])
def test_stages_that_lead_nowhere_are_refused(stages: tuple[float, ...]) -> None:
    with pytest.raises(ConfigError, match="--stages"):
        Plan(stages=stages)


_counts = st.integers(0, 400)
_sides = st.builds(
    lambda requests, errors, lengths, ejections: side(
        requests, errors=min(errors, requests), lengths=min(lengths, requests - min(errors, requests)),
        ejections=ejections,
    ),
    _counts, st.sampled_from([0, 0, 0, 0, 1, 3, 50]), _counts, st.sampled_from([0, 0, 0, 0, 0, 0, 0, 1]),
)  # fmt: skip
_plans = st.builds(
    lambda stages, hold, more, warm_up, least: Plan(
        stages=tuple(float(stage) for stage in sorted(stages)), hold_s=hold, max_hold_s=hold + more, warm_up_s=warm_up,
        min_requests=least, patience_s=5.0, limits=GateLimits(length_points=60.0),
    ),
    st.sets(st.sampled_from([1, 5, 10, 50, 99, 100]), min_size=1, max_size=4).filter(lambda one: min(one) < 100),
    st.sampled_from([0.0, 3.0, 10.0]), st.sampled_from([0.0, 10.0, 100.0]),
    st.sampled_from([0.0, 2.0]), st.sampled_from([1, 100, 300]),
)  # fmt: skip
#: What gateways show: `None` cannot be read, `True` is the weight that was asked for, a number is another one.
_sights = st.tuples(
    st.sampled_from([0.1, 1.0, 3.0]),
    st.sampled_from([True, True, True, True, True, None, 0.0, 10.0]),
    st.sampled_from([True, True, True, False]),
    st.builds(Window, _sides, _sides),
)


@given(_plans, st.lists(_sights, max_size=60))
def test_random_histories_never_pass_a_gate_and_always_return_to_nothing(
    plan: Plan, history: list[tuple[float, bool | float | None, bool, Window]]
) -> None:
    progress = begin(plan)
    for elapsed_s, shown, is_ready, counted in history:
        before = progress
        weights = None if shown is None else frozenset({before.weight, before.weight if shown is True else shown})
        progress = advance(plan, before, Sight(elapsed_s, weights, is_ready, counted))
        assert progress.weight in {0.0, *plan.stages}
        if before.is_over:
            assert progress == before
        if progress.weight > before.weight or (progress.phase is Phase.DONE and before.phase is not Phase.DONE):
            # One stage further, after a hold, with enough requests and every gate met, seen by every gateway.
            assert before.phase is Phase.WATCHING
            assert progress.stage - before.stage == (progress.phase is not Phase.DONE)
            assert {verdict.outcome for verdict in progress.verdicts} == {Outcome.MET}
            assert len(progress.verdicts) > 1
            assert before.held_s + elapsed_s >= plan.hold_s
            assert (before.window + counted).canary.requests >= plan.min_requests
            assert weights is not None
            assert set(weights) == {before.weight}
        if any(verdict.outcome is Outcome.BROKEN for verdict in progress.verdicts):
            assert progress.phase in (Phase.UNDOING, Phase.UNDONE)
        if progress.weight < before.weight:
            assert progress.weight == 0.0
        assert (progress.phase in (Phase.UNDOING, Phase.UNDONE)) == (progress.weight == 0.0) == bool(progress.reason)
    # Whatever has happened: gateways that vanish now bring it to an end, with nothing left for the canary.
    for _ in range(100):
        progress = advance(plan, progress, Sight(1.0, None))
    assert progress.phase is Phase.UNDONE or progress.phase is Phase.DONE
    assert progress.phase is Phase.DONE or progress.weight == 0.0


def test_what_is_left_of_the_stable_side_at_100_is_not_compared_with() -> None:
    before = side(1000)
    progress = _see(begin(PLAN, 2, before))
    progress = _see(progress, Window(side(300, lengths=300), side(300)))
    assert (progress.phase, progress.reference) == (Phase.WATCHING, before)
