"""A time within which several waits, one after another, must all be over.

Owns when it ends. Never waits.
"""

from __future__ import annotations

import time


class TimeLimit:
    """Begins when it is made.

    Args:
        seconds: until it ends.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._end = time.monotonic() + seconds

    def left_s(self) -> float:
        """Return the seconds that are left, at least 0."""
        return max(0.0, self._end - time.monotonic())
