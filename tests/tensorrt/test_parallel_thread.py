"""Who waits for a job on the watched thread gets its outcome, that of no other, and does not wait for ever."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from tests.tensorrt.rank_processes import Call, limited
from trident_backend.engine.tensorrt.watched_thread import WatchedThread
from trident_ensemble.contract.errors import EngineError, EngineLostError


@pytest.fixture
def thread() -> Iterator[WatchedThread]:
    watched = WatchedThread("watched")
    yield watched
    watched.stop()


def nothing() -> None:
    """All is well."""


def test_parallel_thread_all_jobs_run_on_the_same_thread(thread: WatchedThread) -> None:
    idents = {limited(lambda: thread.run(threading.get_ident, nothing)) for _ in range(20)}
    assert len(idents) == 1
    assert threading.get_ident() not in idents


def test_parallel_thread_what_a_job_raises_is_raised_and_the_next_one_runs(thread: WatchedThread) -> None:
    with pytest.raises(ZeroDivisionError):
        limited(lambda: thread.run(lambda: 1 // 0, nothing))
    assert limited(lambda: thread.run(lambda: 7, nothing)) == 7


def test_parallel_thread_a_job_is_left_when_it_is_worth_waiting_for_no_more(thread: WatchedThread) -> None:
    gate, lost = threading.Event(), threading.Event()

    def check() -> None:
        if lost.is_set():
            raise EngineLostError("rank 1 is gone")

    waiting = Call(lambda: thread.run(gate.wait, check))
    time.sleep(0.2)
    assert waiting.is_running()
    lost.set()
    with pytest.raises(EngineLostError, match="rank 1"):
        waiting.outcome(60)
    with pytest.raises(EngineError, match=r"not come back for 0.1 s"):
        limited(lambda: thread.run(lambda: "behind it", nothing, 0.1))
    gate.set()
    # The outcomes of the two that were left come first.
    assert limited(lambda: thread.run(lambda: "last", nothing)) == "last"


def test_parallel_thread_the_thread_ends_when_it_is_told_to() -> None:
    watched = WatchedThread("one that ends")
    watched.stop()
    for thread in threading.enumerate():
        if thread.name == "one that ends":
            thread.join(60)
    assert "one that ends" not in {thread.name for thread in threading.enumerate()}
