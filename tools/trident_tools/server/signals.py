"""Signals: those that ask this process to stop, and those that ended another.

Owns the handlers while they are installed, and the words for a process's end. Never stops anything.
"""

from __future__ import annotations

import signal
from types import FrameType, TracebackType


class StopSignals:
    """Counts the requests to stop (SIGINT, SIGTERM, SIGHUP) that arrive while it is entered as a context."""

    def __init__(self) -> None:
        self.count = 0
        self._previous: dict[signal.Signals, signal._HANDLER] = {}

    def __enter__(self) -> StopSignals:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            self._previous[number] = signal.signal(number, self._take)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _take(self, _number: int, _frame: FrameType | None) -> None:
        self.count += 1


def describe_ending(exit_code: int) -> str:
    """Return a phrase for an exit code as `subprocess` has it: negative for the signal that ended the process."""
    if exit_code >= 0:
        return f"exit status {exit_code}"
    try:
        return f"killed by {signal.Signals(-exit_code).name}"
    except ValueError:  # a real-time signal
        return f"killed by signal {-exit_code}"
