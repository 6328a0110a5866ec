"""Whether the engines behind the gateway do anything while requests wait for them.

Owns the time since something was last seen to happen. Never looks at how many requests wait or how long: a busy engine
is not a dead one.
"""

from __future__ import annotations

STUCK_AFTER_S = 60.0


class ProgressWatch:
    """The steps of engines, as they were last seen."""

    def __init__(self) -> None:
        self._num_steps = -1.0
        self._moved_at: float | None = None
        self._now = 0.0

    def look(self, now: float, *, num_running: int, num_steps: float) -> None:
        """Take note of the present.

        Args:
            now: in seconds of any clock.
            num_running: requests that wait for engines.
            num_steps: of all engines together, as far as they are known; any change of it is progress.
        """
        if not num_running or num_steps != self._num_steps or self._moved_at is None:
            self._moved_at = now
        self._num_steps = num_steps
        self._now = now

    @property
    def is_stuck(self) -> bool:
        """Whether requests have been running for a minute in which no engine has made a step."""
        return self._moved_at is not None and self._now - self._moved_at >= STUCK_AFTER_S
