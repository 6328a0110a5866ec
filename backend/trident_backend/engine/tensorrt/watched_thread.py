"""The thread on which a leader uses its GPU, so that no caller waits for ever for a rank that is gone.

Owns the thread and the order of its jobs. A job that waits in the GPU cannot be ended, only left: it ends with the
process. Never knows what a job does.
"""

from __future__ import annotations

import math
import queue
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

from trident_ensemble.contract.errors import EngineError

#: Seconds between two looks at whether a job is still worth waiting for.
_WATCH_S = 0.05

_Result = TypeVar("_Result")
_Job = Callable[[], Any]


class WatchedThread:
    """Runs jobs one after another, for one caller at a time.

    Args:
        name: of the thread.
    """

    def __init__(self, name: str) -> None:
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._outcomes: queue.SimpleQueue[tuple[_Job, Any, BaseException | None]] = queue.SimpleQueue()
        threading.Thread(target=self._work, name=name, daemon=True).start()

    def run(self, job: Callable[[], _Result], check: Callable[[], None], seconds: float = math.inf) -> _Result:
        """Run a job, wait for it and return its result; what it raises is raised here.

        Args:
            job: begins when those before it have ended, also those that were left.
            check: called while the job runs; when it raises, the job is left, and that is raised here.
            seconds: after which the job is left.

        Raises:
            EngineError: it was left after so many seconds.
        """
        return self.wait(self.begin(job), check, seconds)

    def begin(self, job: Callable[[], _Result]) -> Callable[[], _Result]:
        """Begin a job when those before it have ended; returns it, for `wait`."""
        self._jobs.put(job)
        return job

    def wait(self, job: Callable[[], _Result], check: Callable[[], None], seconds: float = math.inf) -> _Result:
        """Wait for a job that was begun; arguments and errors as of `run`."""
        end = time.monotonic() + seconds
        while True:
            try:
                done, result, error = self._outcomes.get(timeout=min(_WATCH_S, seconds))
            except queue.Empty:
                check()
                if time.monotonic() >= end:
                    raise EngineError(f"the GPU has not come back for {seconds:g} s") from None
                continue
            if done is not job:  # one that was left has ended after all
                continue
            if error is not None:
                raise error
            return result  # type: ignore[no-any-return]

    def stop(self) -> None:
        """Let the thread end after its jobs; does not wait for it."""
        self._jobs.put(None)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                self._outcomes.put((job, job(), None))
            except BaseException as error:
                self._outcomes.put((job, None, error))
