"""The withdrawal of one server's readiness, which is for good.

Owns whether the server has been told, and when it is told again because it did not take the call: one that loads a
model may be too busy to. Never waits for the server to be told.
"""

from __future__ import annotations

import time
from collections.abc import Callable

#: Seconds between two tries. Each that is not answered may hold one of Triton's few HTTP threads until it is.
_AGAIN_S = 5.0


class Withdrawal:
    """The withdrawal of one server's readiness.

    Args:
        withdraw: makes the server say that it is not ready; raises OSError where it cannot.
        say: is called with one line about what happens.
    """

    def __init__(self, withdraw: Callable[[], None], say: Callable[[str], None]) -> None:
        self._withdraw = withdraw
        self._say = say
        self._is_over = False
        self._next_try: float | None = None

    def attempt(self) -> None:
        """Tell the server, unless it has been told; to be called a few times a second until it has ended."""
        if self._is_over or (self._next_try is not None and time.monotonic() < self._next_try):
            return
        try:
            self._withdraw()
        except OSError as error:
            if self._next_try is None:
                self._say(f"It goes on calling itself ready, and is told again: {error}")
            self._next_try = time.monotonic() + _AGAIN_S
        else:
            self._is_over = True
