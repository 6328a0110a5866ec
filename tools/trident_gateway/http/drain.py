"""The end of a gateway, in an order in which no request is lost.

Owns that order. Never handles a signal and never closes a socket: the socket stays open to the end, because load
balancers learn only after a while that requests should go elsewhere.

1. From the first moment on the gateway calls itself not ready, and closes each connection after its next answer.
2. For `delay_s` it serves everything.
3. Then it refuses new requests, and running ones have `timeout_s` to end. A connection that was open before the drain
   and has had no answer since is served once more: its client keeps it, and cannot know. For the same reason the end
   waits a moment for clients that keep connections, as a request may be on its way.
4. Then those that are left are cut: streams end with an error event, other requests are refused.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from trident_gateway.http.lifecycle import Lifecycle, Phase

#: Without a request for so long, clients that keep connections are taken to have none on its way.
_QUIET_S = 1.0
#: For requests that were cut to say so to their clients and to their servers.
_CUT_TIMEOUT_S = 5.0


class Drain:
    """The way of one gateway to its end.

    Args:
        lifecycle: what is ended.
        delay_s: between the beginning and the first refusal.
        timeout_s: for running requests after that.
        say: tells the operator.
        num_connections: returns how many connections are open.
    """

    def __init__(
        self,
        lifecycle: Lifecycle,
        delay_s: float,
        timeout_s: float,
        say: Callable[[str], None],
        num_connections: Callable[[], int] = lambda: 0,
    ) -> None:
        self._lifecycle = lifecycle
        self._delay_s = delay_s
        self._timeout_s = timeout_s
        self._say = say
        self._num_connections = num_connections
        self._begun = asyncio.Event()
        self._skipped = asyncio.Event()
        self._num_signals = 0

    def begin(self) -> None:
        """Begin to drain, if that has not begun."""
        if not self._begun.is_set():
            self._lifecycle.leave_service(asyncio.get_running_loop().time())
            self._begun.set()

    def take_signal(self) -> None:
        """Begin to drain; at a second signal, cut what still runs."""
        self._num_signals += 1
        if self._num_signals > 1:
            self._skipped.set()
        self.begin()

    async def run(self) -> int:
        """Wait for the beginning and drain; return how many requests were cut."""
        await self._begun.wait()
        self._say(
            f"Draining: not ready from now on, refusing in {self._delay_s:g} s, then up to {self._timeout_s:g} s for "
            "what runs. Another signal ends at once."
        )
        await self._unless_skipped(asyncio.sleep(self._delay_s), None)
        self._lifecycle.phase = Phase.REFUSING
        await self._unless_skipped(self._wait_until_quiet(), self._timeout_s)
        num_cut = self._lifecycle.stop_all()
        idle = asyncio.ensure_future(self._lifecycle.wait_until_idle())
        try:
            # Not `asyncio.wait_for`: before Python 3.12 it may swallow that its caller is cancelled.
            await asyncio.wait({idle}, timeout=_CUT_TIMEOUT_S)
        finally:
            idle.cancel()
        return num_cut

    async def _wait_until_quiet(self) -> None:
        """Wait until nothing runs, and nothing has begun for a moment on connections that clients keep."""
        while True:
            await self._lifecycle.wait_until_idle()
            num_begun = self._lifecycle.num_begun
            if not self._num_connections():
                return
            await asyncio.sleep(_QUIET_S)
            if self._lifecycle.num_begun == num_begun:
                return

    async def _unless_skipped(self, work: Coroutine[Any, Any, None], timeout_s: float | None) -> None:
        tasks = {asyncio.ensure_future(work), asyncio.ensure_future(self._skipped.wait())}
        await asyncio.wait(tasks, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            task.cancel()
