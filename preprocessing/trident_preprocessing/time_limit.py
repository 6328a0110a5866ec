"""A bound on the time that a chat template may take.

A template is a program of the checkpoint's author, and what it loops over is the client's. Owns the thread that such
work is done in, and its end; never knows what the work is.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TypeVar

Result = TypeVar("Result")


class TimeLimitError(Exception):
    """The time is up."""


class TimeLimit:
    """Does one piece of work at a time, each in at most so many seconds.

    Args:
        seconds: the limit.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._worker = _new_worker()

    def run(self, work: Callable[[], Result]) -> Result:
        """What the work returns, or raises.

        Work that is given up is also ended: at its next line, so that one that loops without end is, and one operation
        of the interpreter that takes long by itself is not before it is done.

        Raises:
            TimeLimitError: it takes too long.
        """
        threads: list[int] = []

        def tracked() -> Result:
            threads.append(threading.get_ident())
            return work()

        future = self._worker.submit(tracked)
        if wait((future,), self.seconds).done:
            return future.result()
        # Nothing else will be done in that thread, so it is no matter where in it this arrives.
        self._worker.shutdown(wait=False, cancel_futures=True)
        self._worker = _new_worker()
        for thread in threads:
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(SystemExit))
        raise TimeLimitError


def _new_worker() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, "trident-template")
