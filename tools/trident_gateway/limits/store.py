"""What a store of limits does.

Owns the interface that the limiter knows. Never keeps anything.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from trident_gateway.callers import CallerLimits
from trident_gateway.limits.standing import Demand, Standing


class StoreLostError(Exception):
    """The store does not answer, so that nothing is known of the limits it keeps."""


@dataclass(frozen=True)
class Hold:
    """The name of what one request holds, or wants to hold.

    Args:
        account: what is counted together.
        limits: of the account; a store does not remember them.
        lease: the request's own name, never used again.
    """

    account: str
    limits: CallerLimits
    lease: str


@dataclass(frozen=True)
class Outcome:
    """The result of an attempt to take.

    Args:
        is_taken: whether everything was taken, or nothing.
        standing: after it, or the one that refuses.
        limits: that were applied; a part of the account's where gateways cannot ask each other.
    """

    is_taken: bool
    standing: Standing
    limits: CallerLimits


class LimitStore(Protocol):
    """Counts what accounts use."""

    async def take(self, hold: Hold, demand: Demand) -> Outcome:
        """Take everything that a request demands, or nothing.

        Raises:
            StoreLostError: the store does not answer.
        """
        ...

    async def adjust(self, hold: Hold, more: Demand, *, taken_at_ms: int, is_last: bool) -> None:
        """Take more, or give back where the numbers are below 0; nothing, if the request holds nothing any longer.

        More can be taken than there is: it has been used. What is given back does not make more than there is after a
        quiet minute, and a day or a month that has ended is left alone.

        Args:
            hold: of the request.
            more: tokens.
            taken_at_ms: the standing's time when it was taken.
            is_last: let the request hold nothing from now on.

        Raises:
            StoreLostError: the store does not answer.
        """
        ...

    async def start(self) -> None:
        """Begin what the store does by itself; returns at once."""
        ...

    async def close(self) -> None:
        """Let go of everything."""
        ...
