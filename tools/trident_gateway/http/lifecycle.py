"""The requests that are running, and whether the gateway takes more.

Owns the phase of the gateway and the set of its running requests. Never waits by itself and never knows a signal: the
server moves the phase on.
"""

from __future__ import annotations

import asyncio
from enum import Enum


class Phase(Enum):
    """The stages of a gateway's way to its end."""

    #: It takes requests.
    SERVING = "serving"
    #: It takes requests, but asks not to be sent any.
    LEAVING = "leaving"
    #: It refuses new requests.
    REFUSING = "refusing"


class RunningRequest:
    """One request, for as long as its answer takes.

    Args:
        task: runs it, and nothing else.
    """

    def __init__(self, task: asyncio.Task[object]) -> None:
        self._task = task
        self.is_client_gone = False
        self.is_stopped = False
        #: Nothing is left to send, so whatever its task still does must be let do it.
        self.is_answered = False

    @property
    def is_cancelled(self) -> bool:
        """Whether its task has been cancelled, for either reason."""
        return self.is_client_gone or self.is_stopped

    def leave(self) -> None:
        """Cancel it, as its client has gone."""
        if not self.is_answered and not self.is_client_gone:
            self.is_client_gone = True
            self._task.cancel()

    def stop(self) -> bool:
        """Cancel it, as the gateway has to end; return whether its answer is cut by that."""
        if self.is_answered or self.is_client_gone or self.is_stopped:
            return False
        self.is_stopped = True
        self._task.cancel()
        return True


class Lifecycle:
    """The phase of a gateway and what runs in it."""

    def __init__(self) -> None:
        self.phase = Phase.SERVING
        #: When the gateway began to leave, in the time of the event loop.
        self.leaving_since = float("inf")
        #: Requests that have begun.
        self.num_begun = 0
        self._running: set[RunningRequest] = set()
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def num_running(self) -> int:
        """Number of requests that are running."""
        return len(self._running)

    def leave_service(self, now: float) -> None:
        """Take requests, but ask not to be sent any from now on, in the time of the event loop."""
        self.phase = Phase.LEAVING
        self.leaving_since = now

    def takes_from(self, opened_at: float) -> bool:
        """Return whether a request is taken that comes on a connection which was opened at a time.

        One that was open before the gateway began to leave, and still is, has had no answer since that said it would be
        closed: its client could not know, so it is answered once more, and told.
        """
        return self.phase is not Phase.REFUSING or opened_at < self.leaving_since

    def enter(self, request: RunningRequest) -> None:
        """Note that a request begins."""
        self.num_begun += 1
        self._running.add(request)
        self._idle.clear()

    def leave(self, request: RunningRequest) -> None:
        """Note that a request has ended."""
        self._running.discard(request)
        if not self._running:
            self._idle.set()

    async def wait_until_idle(self) -> None:
        """Wait until nothing runs."""
        await self._idle.wait()

    def stop_all(self) -> int:
        """Cancel everything that runs; return how many answers are cut by that."""
        return sum(request.stop() for request in list(self._running))
