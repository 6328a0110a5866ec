"""Which failures are worth another start, and when: over random histories."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from trident_tools.server.restarts import FIRST_DELAY_S, HEALTHY_S, MAX_FAILED_STARTS, MOST_DELAY_S, Failure, Restarts

FAILURES = st.builds(
    Failure,
    ready_s=st.none() | st.floats(0, 2 * HEALTHY_S),
    has_crashed=st.booleans(),
    is_transient=st.booleans(),
)
REFUSED = Failure()
CRASHED = Failure(has_crashed=True)
TRANSIENT = Failure(is_transient=True)
DIED_SOON = Failure(ready_s=1.0)


def delays(restarts: Restarts, *failures: Failure) -> list[float | None]:
    return [restarts.delay_after(failure) for failure in failures]


@given(st.booleans(), st.lists(FAILURES, max_size=40))
def test_restarts_every_history(is_enabled: bool, history: list[Failure]) -> None:
    restarts = Restarts(is_enabled=is_enabled)
    num_failed, has_served, last = 0, False, 0.0
    for failure in history:
        delay = restarts.delay_after(failure)
        num_failed = num_failed + 1 if failure.ready_s is None else 0
        has_served |= failure.ready_s is not None
        if delay is None:
            # Nothing that is to run on is given up before its time.
            assert not is_enabled or failure.ready_s is None
            assert not (is_enabled and has_served and num_failed < MAX_FAILED_STARTS)
            return
        assert is_enabled or failure.is_transient
        assert num_failed <= MAX_FAILED_STARTS
        assert FIRST_DELAY_S <= delay <= MOST_DELAY_S
        was_well = failure.ready_s is not None and failure.ready_s >= HEALTHY_S
        assert delay == (FIRST_DELAY_S if was_well or not last else min(2 * last, MOST_DELAY_S))
        last = delay


def test_restarts_the_delay_doubles_up_to_a_minute_and_begins_anew_after_a_healthy_while() -> None:
    restarts = Restarts(is_enabled=True)
    assert delays(restarts, *[DIED_SOON] * 8) == [1, 2, 4, 8, 16, 32, 60, 60]
    assert delays(restarts, Failure(ready_s=HEALTHY_S), DIED_SOON) == [1, 2]


def test_restarts_a_server_that_dies_while_loading_again_and_again_is_given_up() -> None:
    restarts = Restarts(is_enabled=True)
    assert delays(restarts, *[CRASHED] * MAX_FAILED_STARTS) == [1, 2, 4, 8, None]
    assert restarts.num_failed_starts == MAX_FAILED_STARTS
    restarts = Restarts(is_enabled=True)
    assert delays(restarts, DIED_SOON, *[REFUSED] * MAX_FAILED_STARTS) == [1, 2, 4, 8, 16, None]


def test_restarts_a_server_that_refuses_to_start_is_not_started_again() -> None:
    assert delays(Restarts(is_enabled=True), REFUSED) == [None]


def test_restarts_a_start_that_failed_by_chance_is_tried_once_more_whatever_is_asked_for() -> None:
    for is_enabled in (False, True):
        assert delays(Restarts(is_enabled=is_enabled), TRANSIENT, TRANSIENT) == [1, None]
    assert delays(Restarts(is_enabled=False), TRANSIENT, DIED_SOON) == [1, None]


def test_restarts_a_death_is_the_end_where_restarts_are_off() -> None:
    assert delays(Restarts(is_enabled=False), DIED_SOON) == [None]
    assert delays(Restarts(is_enabled=False), CRASHED) == [None]
