"""The loads a server can be put under, and for how long.

Owns their description alone. Never runs one.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ClosedLoop:
    """Users who each send their next request when their last has ended."""

    num_users: int

    def __str__(self) -> str:
        return f"{self.num_users} user{'' if self.num_users == 1 else 's'}"


@dataclass(frozen=True)
class OpenLoop:
    """Requests that arrive as a Poisson process, so many a second, whatever becomes of them."""

    rate: float

    def __str__(self) -> str:
        return f"{self.rate:g} requests/s"


Load = ClosedLoop | OpenLoop


@dataclass(frozen=True)
class Timing:
    """How long a stage's parts are, in seconds.

    Args:
        ramp: users are spawned evenly, or requests arrive, and nothing is measured.
        duration: of the window that is measured.
        grace: that requests have to end after it.
        report: between two lines of progress.
    """

    ramp: float
    duration: float
    grace: float
    report: float = 5.0
