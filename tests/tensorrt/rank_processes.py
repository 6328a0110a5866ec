"""The processes of ranks, and waiting with a limit: for tests of several processes, which may hang when they fail."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Generic, TypeVar

from trident_backend.engine.tensorrt.parallel import ParallelEngine

#: Seconds that anything may take, at most.
LIMIT_S = 20.0

_Result = TypeVar("_Result")


def pids(engine: ParallelEngine) -> list[int]:
    """The processes of an engine's ranks, but for the leader's."""
    return [rank.process.pid for rank in engine._ranks._reached]


def ranks_of(pid: int) -> set[int]:
    """A process's children that are ranks, or were; it may have others."""
    return {child for child in _children(pid) if _is_rank(child)}


def is_running(pid: int) -> bool:
    """Whether there is such a process, and not only its remains."""
    return _state(pid) not in ("", "Z", "X")


def until(is_over: Callable[[], bool], seconds: float = LIMIT_S) -> bool:
    """Wait until it is; whether it is."""
    end = time.monotonic() + seconds
    while not is_over() and time.monotonic() < end:
        time.sleep(0.02)
    return is_over()


def limited(function: Callable[[], _Result], seconds: float = LIMIT_S) -> _Result:
    """What a function returns or raises, if it does so in time."""
    return Call(function).outcome(seconds)


class Call(Generic[_Result]):
    """A function that runs on a thread of its own."""

    def __init__(self, function: Callable[[], _Result]) -> None:
        self._results: list[_Result] = []
        self._errors: list[BaseException] = []
        self._thread = threading.Thread(target=self._run, args=(function,), daemon=True)
        self._thread.start()

    def is_running(self) -> bool:
        return self._thread.is_alive()

    def outcome(self, seconds: float = LIMIT_S) -> _Result:
        self._thread.join(seconds)
        assert not self._thread.is_alive(), f"it still waits after {seconds} s"
        if self._errors:
            raise self._errors[0]
        return self._results[0]

    def _run(self, function: Callable[[], _Result]) -> None:
        try:
            self._results.append(function())
        except BaseException as error:
            self._errors.append(error)


@contextmanager
def no_ranks_left() -> Iterator[None]:
    """Whatever happens within leaves no process of a rank."""
    before = _children(os.getpid())  # others may end meanwhile
    yield
    assert until(lambda: ranks_of(os.getpid()) <= before), "processes are left"


def _children(pid: int) -> set[int]:
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    return {child for task in tasks for child in map(int, _read(task).split())}


def _is_rank(pid: int) -> bool:
    return _state(pid) == "Z" or any(name in _read(Path(f"/proc/{pid}/cmdline")) for name in _MODULES)


def _state(pid: int) -> str:
    return _read(Path(f"/proc/{pid}/stat")).rpartition(")")[2].strip()[:1]


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:  # it has ended
        return ""


_MODULES = ("tensorrt.rank_process", "tests.fakes.rank")
