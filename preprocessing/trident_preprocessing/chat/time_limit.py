"""A bound on the time that chat templates may take.

A template is a program by the checkpoint's author that loops over a client's data. Owns the threads on which such work
is done, their number and their end. Never knows what the work is.
"""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from trident_ensemble.contract.errors import UnavailableError

Result = TypeVar("Result")


class TimeLimitError(Exception):
    """Work that took longer than it may."""


class TimeLimit:
    """Does work on threads of its own, each piece within a limit. Any number of threads may use it.

    Time is the CPU time of the work's own thread, so that no request is refused because the machine is busy. The
    threads are daemons, so work that cannot be ended does not keep the process from ending.

    Args:
        seconds: the limit on one piece of work.
        brief_seconds: work that takes longer than this is slow.
        max_slow: slow pieces of work at a time; a further one is ended as soon as it becomes slow.
        max_threads: pieces of work at a time, including those that were given up and have not ended yet.
    """

    def __init__(
        self, seconds: float, *, brief_seconds: float = 0.05, max_slow: int = 4, max_threads: int = 16
    ) -> None:
        self.seconds = seconds
        self._brief_seconds = brief_seconds
        self._max_slow = max_slow
        self._max_threads = max_threads
        self._lock = threading.Lock()
        self._jobs: list[_Job[Any]] = []

    def run(self, work: Callable[[], Result]) -> Result:
        """Do the work; return what it returns, or raise what it raises.

        Work that exceeds the limit is ended at its next line. So an endless loop ends, but a single long operation of
        the interpreter runs to its end.

        Raises:
            TimeLimitError: the work takes too long.
            UnavailableError: too much other work, or too much slow work, is being done.
        """
        job = self._start(work)
        if not job.wait(self._brief_seconds):
            if not self._may_be_slow(job):
                job.end()
                raise UnavailableError(
                    f"{self._max_slow} other chat templates take long at the moment; try again later"
                )
            if not job.wait(self.seconds):
                job.end()
                raise TimeLimitError
        return job.result()

    def _start(self, work: Callable[[], Result]) -> _Job[Result]:
        with self._lock:
            self._jobs = [job for job in self._jobs if job.is_alive()]
            if len(self._jobs) >= self._max_threads:
                raise UnavailableError(f"{len(self._jobs)} chat templates are being rendered; try again later")
            job = _Job(work)
            self._jobs.append(job)
            job.start()
        return job

    def _may_be_slow(self, job: _Job[Any]) -> bool:
        with self._lock:
            if sum(other.is_slow and other.is_alive() for other in self._jobs) >= self._max_slow:
                return False
            job.is_slow = True
            return True


class _Job(threading.Thread, Generic[Result]):
    """A piece of work and its thread."""

    def __init__(self, work: Callable[[], Result]) -> None:
        super().__init__(name="trident-template", daemon=True)
        self.is_slow = False
        self._work = work
        self._clock: int | None = None
        self._done = threading.Event()
        self._result: Result | None = None
        self._error: BaseException | None = None

    def run(self) -> None:
        self._clock = time.pthread_getcpuclockid(threading.get_ident())
        try:
            self._result = self._work()
        except BaseException as error:
            self._error = error
        self._done.set()

    def wait(self, seconds: float) -> bool:
        """Wait until the work is done or its thread has computed for `seconds`; return whether it is done."""
        left = seconds
        while left > 0:
            if self._done.wait(max(left, _LEAST_WAIT_S)):
                return True
            left = seconds - self._computed_seconds()
        return self._done.is_set()

    def result(self) -> Result:
        """Return what the work returned, or raise what it raised."""
        if self._error is not None:
            raise self._error
        return self._result  # type: ignore[return-value]

    def end(self) -> None:
        """End the thread, which does nothing else, so the exception may arrive anywhere in it."""
        if self.ident is not None and not self._done.is_set():
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(self.ident), ctypes.py_object(SystemExit))

    def _computed_seconds(self) -> float:
        if self._clock is None:
            return 0.0
        try:
            return time.clock_gettime(self._clock)
        except OSError:  # it has ended
            return 0.0


_LEAST_WAIT_S = 0.005
