"""The decision whether a server that has died is started again, and after which delay.

Owns the decision and the history on which it is based. Never starts, waits, prints or reads a clock: the caller says
how long the server had been ready.

A server with a wrong setting or a damaged engine ends with an exit status while it loads, and would do so again, so it
is not started again. A server is worth another start if it served and died, if it crashed while it loaded, or if it
failed for a transient reason, which `Failure.is_transient` marks.
"""

from __future__ import annotations

from dataclasses import dataclass

#: The delay before the first restart; each further one doubles it.
FIRST_DELAY_S = 1.0
MOST_DELAY_S = 60.0
#: After a server that was ready for this long, the next delay is the first one again.
HEALTHY_S = 120.0
#: How many starts in a row may fail.
MAX_FAILED_STARTS = 5


@dataclass(frozen=True)
class Failure:
    """The known facts about a server that could not be started, or that died.

    Args:
        ready_s: seconds for which the server had been ready; None if it never was.
        has_crashed: a signal ended the process that died.
        is_transient: the reason was transient, so another start may succeed without any change.
    """

    ready_s: float | None = None
    has_crashed: bool = False
    is_transient: bool = False


class Restarts:
    """Decides about restarts of one deployment, from its first start on.

    Args:
        is_enabled: start a server again that has died. A start that failed for a transient reason is tried once more
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
        """Number of starts that have failed since a server was last ready."""
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
        """Return whether a start that has failed is worth another."""
        if failure.is_transient and not self._has_retried:
            self._has_retried = True
            return True
        is_worth_it = self._has_served or failure.has_crashed
        return self._is_enabled and is_worth_it and self._num_failed_starts < MAX_FAILED_STARTS
