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
        self._running: set[RunningRequest] = set()
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def num_running(self) -> int:
        """Number of requests that are running."""
        return len(self._running)

    def enter(self, request: RunningRequest) -> None:
        """Note that a request begins."""
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
