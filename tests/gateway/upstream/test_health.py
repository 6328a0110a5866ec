"""When a server is out of rotation, and when it is back, under any history of probes and calls."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from trident_gateway.upstream.health import MAX_FAILURES, Health, Level


class Histories(RuleBasedStateMachine):
    """Any order of events, with a clock."""

    def __init__(self) -> None:
        super().__init__()
        self.health = Health()
        self.now = 0.0
        self.probes_in_a_row = 0
        self.calls_in_a_row = 0
        self.is_up = False

    @rule(seconds=st.floats(0.01, 40))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule(is_ready=st.booleans())
    def probe_answered(self, *, is_ready: bool) -> None:
        self.probes_in_a_row = 0
        if not self.is_up:
            self.calls_in_a_row = 0
        self.is_up = True
        self.health.probe_answered(is_ready=is_ready)
        assert not self.health.is_suspect
        assert self.health.level(self.now + 31) is (Level.READY if is_ready else Level.DOUBTFUL)

    @rule()
    def call_answered(self) -> None:
        self.probes_in_a_row = self.calls_in_a_row = 0
        self.health.call_answered()

    @rule(is_probe=st.booleans())
    def failed(self, *, is_probe: bool) -> None:
        before = self.health.num_ejections
        if is_probe:
            self.probes_in_a_row += 1
            self.health.probe_failed(self.now)
        else:
            self.calls_in_a_row += 1
            self.health.call_failed(self.now)
        assert self.health.is_suspect
        if self.is_up and self.probes_in_a_row + self.calls_in_a_row == MAX_FAILURES:
            self.is_up = False
            self.probes_in_a_row = self.calls_in_a_row = 0
            assert self.health.num_ejections == before + 1
        else:
            assert self.health.num_ejections == before

    @invariant()
    def is_down_after_three_failures_and_before_the_first_probe(self) -> None:
        assert (self.health.level(self.now) is Level.DOWN) == (not self.is_up)


TestHistories = Histories.TestCase
TestHistories.settings = settings(deadline=None, max_examples=30)


def test_health_stays_out_longer_each_time_until_a_call_is_answered() -> None:
    health, now, bans = Health(), 0.0, []
    health.probe_answered(is_ready=True)
    for _ in range(7):
        for _ in range(MAX_FAILURES):
            health.call_failed(now)
        health.probe_answered(is_ready=True)
        back = next(second for second in range(100) if health.level(now + second) is Level.READY)
        bans.append(back)
        now += back
    assert bans == [1, 2, 4, 8, 16, 30, 30]
    health.call_answered()
    for _ in range(MAX_FAILURES):
        health.call_failed(now)
    health.probe_answered(is_ready=True)
    assert health.level(now + 0.9) is Level.DOUBTFUL
    assert health.level(now + 1) is Level.READY


def test_health_counts_probes_that_fail_in_a_row_and_not_at_any_time() -> None:
    health = Health()
    for now in range(100):
        health.probe_answered(is_ready=True)
        assert not health.is_suspect
        health.probe_failed(now)
        assert health.is_suspect
        assert health.level(now) is Level.READY
    health.probe_failed(100)
    health.probe_failed(100)
    assert health.level(100) is Level.DOWN


def test_health_counts_calls_that_fail_whatever_probes_say() -> None:
    health = Health()
    for now in range(MAX_FAILURES):
        health.probe_answered(is_ready=True)
        assert health.level(now) is Level.READY
        health.call_failed(now)
    assert health.level(MAX_FAILURES) is Level.DOWN
