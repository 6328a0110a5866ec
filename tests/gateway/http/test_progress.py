"""Whether engines stand still."""

from __future__ import annotations

import pytest

from trident_gateway.http.progress import STUCK_AFTER_S, ProgressWatch
from trident_gateway.upstream.server_status import ServerStatus


def server(num_steps: float | None, *, name: str = "a", is_ready: bool = True, is_awaited: bool = True) -> ServerStatus:
    """Return the state of a server."""
    return ServerStatus(name, is_ready, 1, 0, is_awaited, num_steps, is_well=is_ready)


def test_progress_stands_still_only_if_calls_wait_and_the_engine_makes_no_step() -> None:
    watch = ProgressWatch()
    assert not watch.is_stuck
    for now in range(0, 300, 10):  # busy, however long calls wait
        watch.look(now, [server(now)])
        assert not watch.is_stuck
    stands_since = 290
    for now in range(300, 400, 10):
        watch.look(now, [server(290)])
        assert watch.is_stuck is (now - stands_since >= STUCK_AFTER_S)
    watch.look(400, [server(291)])
    assert not watch.is_stuck


def test_progress_of_a_server_that_is_out_of_rotation_for_hanging_is_looked_at_on() -> None:
    watch = ProgressWatch()
    for now in range(0, 100, 10):
        hung = ServerStatus("a", is_ready=now < 10, num_in_flight=1, num_ejections=0, is_awaited=True, num_steps=5)
        watch.look(now, [hung])
        assert watch.is_stuck is (now >= STUCK_AFTER_S)


def test_progress_is_a_restarted_engine_too() -> None:
    watch = ProgressWatch()
    watch.look(0, [server(1000)])
    watch.look(59, [server(3)])
    watch.look(61, [server(3)])
    assert not watch.is_stuck


@pytest.mark.parametrize(
    "servers",
    [
        [],
        [server(5, is_awaited=False)],  # nothing is asked, or clients do not read
        [server(5, is_ready=False)],  # it is down, or drains
        [server(None)],  # its metrics cannot be had
        [server(5), server(7, name="b", is_awaited=False)],  # calls can go to another one
    ],
)
def test_progress_is_no_matter_of_queues_clients_and_servers_that_are_down(servers: list[ServerStatus]) -> None:
    watch = ProgressWatch()
    for now in range(0, 600, 10):
        watch.look(now, servers)
        assert not watch.is_stuck


def test_progress_of_one_that_was_away_meanwhile_is_measured_anew() -> None:
    watch = ProgressWatch()
    watch.look(0, [server(5)])
    watch.look(50, [server(None)])
    watch.look(51, [server(5)])
    watch.look(110, [server(5)])
    assert not watch.is_stuck
    watch.look(111, [server(5)])
    assert watch.is_stuck
