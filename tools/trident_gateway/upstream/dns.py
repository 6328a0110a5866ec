"""The servers of a name in DNS, which are as many as it has addresses.

Owns when the name is looked up, and what was found last. Never knows whether a server is well.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress

from trident_gateway.settings import ServerAddress, ServerName

#: Returns the addresses of a name; raises an `OSError` where it has none, or where that cannot be found out.
Resolve = Callable[[str, int], Awaitable[Sequence[str]]]
_log = logging.getLogger(__name__)


async def resolve(host: str, port: int) -> list[str]:
    """Return the addresses of a name, as the system finds them.

    A server may have an address of each kind; so they are all of the kind that the system prefers.

    Raises:
        OSError: there are none, or nobody answers.
    """
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(address[0]) for family, _, _, _, address in found if family == found[0][0]]


class DnsServers:
    """The servers of a name, as it was when it could last be looked up.

    Args:
        name: that is looked up.
        on_change: called when there are others.
        resolve: looks it up.
        interval_s: between two looks.
    """

    def __init__(self, name: ServerName, on_change: Callable[[], None], resolve: Resolve, interval_s: float) -> None:
        self._name = name
        self._on_change = on_change
        self._resolve = resolve
        self._interval_s = interval_s
        self._watch: asyncio.Task[None] | None = None
        self._is_failing = False
        self.servers: tuple[ServerAddress, ...] = ()
        self.num_failures = 0

    async def start(self) -> None:
        """Look the name up, and begin to do so again and again."""
        await self.look()
        self._watch = asyncio.create_task(self._look_again_and_again())

    async def close(self) -> None:
        """Stop looking."""
        if self._watch is not None:
            self._watch.cancel()
            with suppress(asyncio.CancelledError):
                await self._watch

    async def look(self) -> None:
        """Look the name up once; where that fails, the servers stay as they are."""
        name = self._name
        try:
            addresses = await self._resolve(name.host, name.port)
        except OSError as error:
            self._failed(str(error))
            return
        if not addresses:
            self._failed("it has no address")
            return
        self._is_failing = False
        servers = tuple(_server(address, name) for address in sorted(set(addresses)))
        if servers != self.servers:
            self.servers = servers
            self._on_change()

    def _failed(self, text: str) -> None:
        self.num_failures += 1
        if not self._is_failing:
            _log.warning("%s cannot be looked up, and its servers stay as they are: %s", self._name.host, text)
        self._is_failing = True

    async def _look_again_and_again(self) -> None:
        while True:
            await asyncio.sleep(self._interval_s)
            await self.look()


def _server(address: str, name: ServerName) -> ServerAddress:
    host = f"[{address}]" if ":" in address else address
    return ServerAddress(f"http://{host}:{name.port}", f"http://{host}:{name.metrics_port}")
