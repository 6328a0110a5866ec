"""Whether a server that has died is started again, and after how long.

Owns the decision and the history that it rests on. Never starts, waits or prints, and has no clock: whoever asks says
how long the server had been ready.

A server that was told something wrong (a setting, a damaged engine) ends with an exit status while it loads, and would
do so again: it is not started again. What is worth another start is a server that served and died, one that crashed
while it loaded, and one that failed for a reason of the moment, which `Failure.is_transient` marks.
"""

from __future__ import annotations

from dataclasses import dataclass

#: The delay before the first restart; each further one doubles it.
FIRST_DELAY_S = 1.0
MOST_DELAY_S = 60.0
#: A server that was ready for so long was well: the next delay is the first one again.
HEALTHY_S = 120.0
#: Starts in a row that may fail, and no more.
MAX_FAILED_STARTS = 5


@dataclass(frozen=True)
class Failure:
    """What is known of a server that could not be started, or died.

    Args:
        ready_s: seconds for which it had been ready; None if it never was.
        has_crashed: what died was ended by a signal, not by an exit status of its own.
        is_transient: the reason was one of the moment, and another start may do without any change.
    """

    ready_s: float | None = None
    has_crashed: bool = False
    is_transient: bool = False


class Restarts:
    """Decides for one deployment, from its first start on.

    Args:
        is_enabled: start a server again that died. A start that failed for a reason of the moment is tried once more
            in any case.
    """

    def __init__(self, *, is_enabled: bool) -> None:
        self._is_enabled = is_enabled
        self._has_served = False
        self._has_retried = False
        self._num_delays = 0
        self._num_failed_starts = 0

    @property
    def is_enabled(self) -> bool:
        """Whether a server that dies is started again."""
        return self._is_enabled

    @property
    def num_failed_starts(self) -> int:
        """How many starts have failed since a server was last ready."""
        return self._num_failed_starts

    def delay_after(self, failure: Failure) -> float | None:
        """Take note of a failure; return the seconds until the next start, or None if there is to be none."""
        if failure.ready_s is None:
            self._num_failed_starts += 1
            if not self._may_try_again(failure):
                return None
        else:
            self._has_served = True
            self._has_retried = False
            self._num_failed_starts = 0
            if failure.ready_s >= HEALTHY_S:
                self._num_delays = 0
            if not self._is_enabled:
                return None
        delay_s = min(FIRST_DELAY_S * 2.0 ** min(self._num_delays, 30), MOST_DELAY_S)
        self._num_delays += 1
        return delay_s

    def _may_try_again(self, failure: Failure) -> bool:
        """Whether a start that has failed is worth another."""
        if failure.is_transient and not self._has_retried:
            self._has_retried = True
            return True
        is_worth_it = self._has_served or failure.has_crashed
        return self._is_enabled and is_worth_it and self._num_failed_starts < MAX_FAILED_STARTS
