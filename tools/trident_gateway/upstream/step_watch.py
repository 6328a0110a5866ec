"""Whether the engines of one server move while calls wait for them.

Owns the time since they last did. Pure: it asks nobody and reads no clock. Never looks at how long calls wait while
steps are made: a busy engine is not a dead one.
"""

from __future__ import annotations


class StepWatch:
    """The steps of the engines of one server, as they were last seen.

    A server hangs when calls have waited for it for some time in which its engines have made no step, and until they
    make one. Where nobody waits for it any more, nothing would bring about that step; so after a time it is let have
    one call.

    Args:
        hung_s: seconds without a step, while calls wait.
        trial_s: seconds without anybody who waits.
    """

    def __init__(self, hung_s: float, trial_s: float) -> None:
        self._hung_s = hung_s
        self._trial_s = trial_s
        self._num_steps: float | None = None
        self._moved_at = float("-inf")
        self._awaited_at = float("-inf")
        self._is_still = False

    def look(self, now: float, num_steps: float, awaited_since: float | None) -> None:
        """Take note of the present; not to be called while the number of steps is not known.

        Args:
            now: in seconds of any clock.
            num_steps: that the engines have made; any other number than before is progress.
            awaited_since: when the one that waits longest began to; None if nobody waits.
        """
        if num_steps != self._num_steps:
            self._num_steps, self._moved_at, self._is_still = num_steps, now, False
        elif awaited_since is not None:
            self._awaited_at = now
            if now - max(awaited_since, self._moved_at) >= self._hung_s:
                self._is_still = True

    def is_hung(self, now: float, *, is_awaited: bool) -> bool:
        """Return whether the server is not to be sent calls, where calls wait for it at this moment or do not.

        Those whose clients do not read wait for nothing, and could keep it so for ever.
        """
        return self._is_still and (is_awaited or now - self._awaited_at < self._trial_s)
