"""The loads under which a server can be put, and their timing.

Owns their description. Never runs one.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ClosedLoop:
    """A number of users who each send their next request when their last one has ended."""

    num_users: int

    def __str__(self) -> str:
        return f"{self.num_users} user{'' if self.num_users == 1 else 's'}"


@dataclass(frozen=True)
class OpenLoop:
    """A Poisson process of requests, `rate` per second on average, whatever becomes of them."""

    rate: float

    def __str__(self) -> str:
        return f"{self.rate:g} requests/s"


Load = ClosedLoop | OpenLoop


@dataclass(frozen=True)
class Timing:
    """The lengths of a stage's parts, in seconds.

    Args:
        ramp: the beginning, in which users are spawned evenly, or requests arrive, and nothing is measured.
        duration: the window that is measured.
        grace: the time after the window in which requests may still end.
        report: the time between two lines of progress.
    """

    ramp: float
    duration: float
    grace: float
    report: float = 5.0
