"""Work that takes too long is ended; while it runs, and if it cannot be ended, other work goes on within bounds."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partial

import pytest

from trident_ensemble.contract.errors import UnavailableError
from trident_preprocessing.chat.time_limit import TimeLimit, TimeLimitError


def loop() -> None:
    while True:
        pass


def ended(threads: set[threading.Thread]) -> bool:
    """Whether all threads but these have ended; waits for them."""
    for thread in set(threading.enumerate()) - threads:
        thread.join(60)
    return set(threading.enumerate()) <= threads


def in_background(work: Callable[[], object]) -> tuple[threading.Thread, list[BaseException | object]]:
    outcome: list[BaseException | object] = []

    def run() -> None:
        try:
            outcome.append(work())
        except Exception as error:
            outcome.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread, outcome


def test_time_limit_what_work_returns_or_raises_is_its_callers() -> None:
    limit = TimeLimit(1)
    assert limit.run(lambda: 7) == 7

    def fail() -> None:
        raise KeyError("x")

    with pytest.raises(KeyError):
        limit.run(fail)


def test_time_limit_work_without_end_is_ended_and_waiting_is_no_work() -> None:
    threads = set(threading.enumerate())
    limit = TimeLimit(0.2)
    with pytest.raises(TimeLimitError):
        limit.run(loop)
    assert ended(threads)
    limit.run(lambda: time.sleep(0.4))


def test_time_limit_no_more_work_is_slow_than_may_be_and_brief_work_goes_on() -> None:
    threads = set(threading.enumerate())
    limit = TimeLimit(2, brief_seconds=0.02, max_slow=2)
    slow = [in_background(lambda: limit.run(loop)) for _ in range(2)]
    while sum(job.is_slow for job in limit._jobs) < 2:
        time.sleep(0.005)
    with pytest.raises(UnavailableError, match="2 other chat templates take long"):
        limit.run(loop)
    for number in range(20):
        assert limit.run(partial(int, number)) == number
    assert all(thread.is_alive() for thread, _ in slow), "brief work was done beside them"
    for thread, outcome in slow:
        thread.join(60)
        assert isinstance(outcome[0], TimeLimitError)
    assert ended(threads)
    limit.run(lambda: None)


def test_time_limit_work_that_cannot_be_ended_counts_until_it_ends() -> None:
    """One operation of the interpreter: no exception reaches its thread before it is done."""
    gate = threading.Lock()
    gate.acquire()
    limit = TimeLimit(0.05, brief_seconds=0.02, max_slow=8, max_threads=3)

    def stuck() -> None:
        end = time.thread_time() + 0.1
        while time.thread_time() < end:
            try:
                while time.thread_time() < end:
                    pass
            except SystemExit:
                break
        gate.acquire()

    for _ in range(3):
        with pytest.raises(TimeLimitError):
            limit.run(stuck)
    for _ in range(2):
        with pytest.raises(UnavailableError, match="3 chat templates are being rendered"):
            limit.run(lambda: None)
    assert sum(thread.name == "trident-template" for thread in threading.enumerate()) == 3
    for job in limit._jobs:
        gate.release()
        job.join(60)
        gate.acquire(blocking=False)
    assert limit.run(lambda: 1) == 1


def test_time_limit_stuck_work_does_not_keep_the_process_from_its_end() -> None:
    program = (
        "import threading\n"
        "from trident_preprocessing.chat.time_limit import TimeLimit\n"
        "begun = threading.Event()\n"
        "def stuck():\n"
        "    begun.set()\n"
        "    threading.Event().wait()\n"
        "threading.Thread(target=TimeLimit(1).run, args=(stuck,), daemon=True).start()\n"
        "begun.wait()\n"
    )
    subprocess.run([sys.executable, "-c", program], timeout=60, check=True)
