"""Whether a server's engines stand still while calls wait."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from trident_gateway.upstream.step_watch import StepWatch

HUNG_S, TRIAL_S = 10.0, 30.0
#: Of each second: whether the engine makes a step in it, and whether a call waits through it.
SECONDS = st.lists(st.tuples(st.booleans(), st.booleans()), max_size=120)
IDLE_SECONDS = st.lists(st.tuples(st.sampled_from([False, False, False, True]), st.just(True)), max_size=120)


@given(SECONDS | IDLE_SECONDS)
def test_step_watch_tells_a_server_that_hangs_from_one_that_is_busy_or_idle(seconds: list[tuple[bool, bool]]) -> None:
    watch = StepWatch(HUNG_S, TRIAL_S)
    watch.look(0, 0, None)
    num_steps, is_hung = 0, False
    still = waited = free = 0  # seconds without a step; of waiting; without waiting
    for now, (makes_step, waits) in enumerate(seconds, 1):
        num_steps += makes_step
        still = 0 if makes_step else still + 1
        waited, free = (waited + 1, 0) if waits else (0, free + 1)
        # What the page says is a second old at the most, and so is the answer.
        watch.look(now, num_steps, now - waited if waits else None)
        is_hung = not makes_step and (is_hung or (waits and min(still, waited) >= HUNG_S))
        assert watch.is_hung(now, is_awaited=True) is is_hung
        assert watch.is_hung(now, is_awaited=False) is (is_hung and free < TRIAL_S)


def test_step_watch_a_server_that_grows_is_well_whatever_waits() -> None:
    watch = StepWatch(HUNG_S, TRIAL_S)
    for now in range(600):
        watch.look(now, now // 9, -1000.0)
        assert not watch.is_hung(now, is_awaited=True)


def test_step_watch_a_restarted_engine_has_moved() -> None:
    watch = StepWatch(HUNG_S, TRIAL_S)
    for now in range(15):
        watch.look(now, 1000, 0)
    assert watch.is_hung(15, is_awaited=True)
    watch.look(15, 3, 0)
    assert not watch.is_hung(15, is_awaited=True)
