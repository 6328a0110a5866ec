"""What a call has used at its servers when nobody reads its answer to the end.

Owns whether a server has taken the call, and the wait until none works on it any more. Never counts anything: whoever
makes the call does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from trident_gateway.upstream.events import GenerateEvent


def _ignore(_events: Sequence[GenerateEvent]) -> None:
    pass


class CallSpending:
    """The account of one call, which exchanges write and the one who pays reads.

    Args:
        take: given the responses that come after the exchange was closed, or that nobody has read by then.
    """

    def __init__(self, take: Callable[[Sequence[GenerateEvent]], None] = _ignore) -> None:
        self.take = take
        self._num_taken = 0
        self._num_running = 0
        self._ended = asyncio.Event()
        self._ended.set()

    @property
    def is_taken(self) -> bool:
        """Whether a server may have worked on the call: it was sent to one that has not refused it."""
        return self._num_taken > 0

    @property
    def has_ended(self) -> bool:
        """Whether no server works on the call any more, as far as can be known."""
        return not self._num_running

    def note_sent(self) -> None:
        """Note that a server has the call."""
        self._num_taken += 1
        self._num_running += 1
        self._ended.clear()

    def note_refused(self) -> None:
        """Note that this server has not taken it."""
        self._num_taken -= 1

    def note_ended(self) -> None:
        """Note that this server has nothing to do for it any more, and says nothing more of it."""
        self._num_running -= 1
        if not self._num_running:
            self._ended.set()

    async def wait_until_ended(self) -> None:
        """Wait until no server works on the call."""
        await self._ended.wait()
