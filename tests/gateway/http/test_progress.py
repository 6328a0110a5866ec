"""Whether engines stand still."""

from __future__ import annotations

from trident_gateway.http.progress import STUCK_AFTER_S, ProgressWatch


def test_progress_stands_still_only_if_requests_run_and_no_engine_makes_a_step() -> None:
    watch = ProgressWatch()
    assert not watch.is_stuck
    for now in range(0, 300, 10):  # idle
        watch.look(now, num_running=0, num_steps=5)
        assert not watch.is_stuck
    for now in range(300, 600, 10):  # busy, however long requests wait
        watch.look(now, num_running=100, num_steps=now)
        assert not watch.is_stuck
    stands_since = 590
    for now in range(600, 700, 10):
        watch.look(now, num_running=1, num_steps=590)
        assert watch.is_stuck is (now - stands_since >= STUCK_AFTER_S)
    watch.look(700, num_running=1, num_steps=591)
    assert not watch.is_stuck


def test_progress_is_a_restarted_engine_too() -> None:
    watch = ProgressWatch()
    watch.look(0, num_running=1, num_steps=1000)
    watch.look(59, num_running=1, num_steps=3)
    watch.look(61, num_running=1, num_steps=3)
    assert not watch.is_stuck
