"""Whether a server is sent calls.

Owns the count of failures and the time for which a server stays out of rotation. Pure: it never probes and reads no
clock.
"""

from __future__ import annotations

from enum import IntEnum

MAX_FAILURES = 3
_FIRST_BAN_S, _MAX_BAN_S = 1.0, 30.0


class Level(IntEnum):
    """The levels of hope that a server will answer."""

    #: It does not answer.
    DOWN = 0
    #: It answers, but says that it is not ready, or has failed lately: to be used if no other is there.
    DOUBTFUL = 1
    READY = 2


class Health:
    """The health of one server, by what became of probes and calls.

    Three connection failures in a row eject it: a probe that is answered ends a row of probes, and a call that is
    answered ends any. A probe that succeeds brings it back, after a time that doubles each time it fails again without
    having served a call in between.
    """

    def __init__(self) -> None:
        self._answers = False
        self._is_ready = False
        self._num_failed_probes = 0
        self._num_failed_calls = 0
        self._num_bans = 0
        self._banned_until = float("-inf")
        #: Whether something has failed since a probe was answered.
        self.is_suspect = False
        #: How often it was ejected.
        self.num_ejections = 0

    def level(self, now: float) -> Level:
        """Return how much is to be hoped of the server."""
        if not self._answers:
            return Level.DOWN
        return Level.READY if self._is_ready and now >= self._banned_until else Level.DOUBTFUL

    def probe_answered(self, *, is_ready: bool) -> None:
        """Note what the server says of itself."""
        self._num_failed_probes = 0
        if not self._answers:
            self._num_failed_calls = 0
        self.is_suspect = False
        self._answers = True
        self._is_ready = is_ready

    def call_answered(self) -> None:
        """Note that a call has got an answer."""
        self._num_failed_probes = self._num_failed_calls = 0
        self._num_bans = 0

    def probe_failed(self, now: float) -> None:
        """Note that a probe got no connection, or lost it."""
        self._num_failed_probes += 1
        self._failed(now)

    def call_failed(self, now: float) -> None:
        """Note that a call got no connection, or lost it."""
        self._num_failed_calls += 1
        self._failed(now)

    def _failed(self, now: float) -> None:
        self.is_suspect = True
        if self._answers and self._num_failed_probes + self._num_failed_calls >= MAX_FAILURES:
            self._answers = False
            self._num_failed_probes = self._num_failed_calls = 0
            self._banned_until = now + min(_FIRST_BAN_S * 2**self._num_bans, _MAX_BAN_S)
            self._num_bans += 1
            self.num_ejections += 1
