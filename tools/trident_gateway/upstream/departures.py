"""The servers that have no place behind the gateway any more and end the calls that they have.

Owns them until they are closed. Never decides that a server leaves.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from trident_gateway.settings import ServerAddress
from trident_gateway.upstream.server import Server

#: For calls that are being ended when a server is closed.
CLOSE_TIMEOUT_S = 5.0
_log = logging.getLogger(__name__)


class Departures:
    """The servers that leave.

    Args:
        on_gone: called after one of them was closed.
    """

    def __init__(self, on_gone: Callable[[Server], None]) -> None:
        self._on_gone = on_gone
        self._leaving: dict[Server, asyncio.Task[None]] = {}
        self._closing: set[asyncio.Task[None]] = set()

    @property
    def servers(self) -> tuple[Server, ...]:
        """All servers that still have calls."""
        return tuple(self._leaving)

    def add(self, server: Server) -> None:
        """Let go of a server when it has ended the calls that it has."""
        self._leaving[server] = asyncio.get_running_loop().create_task(self._let_go(server))
        _log.info("server %s leaves, with %d calls", server.name, server.num_in_flight)

    def take_back(self, address: ServerAddress) -> Server | None:
        """Return the server of an address, which does not leave then; None if there is none."""
        server = next((one for one in self._leaving if one.address == address), None)
        if server is not None:
            self._leaving.pop(server).cancel()
        return server

    async def close(self) -> None:
        """Close all of them when calls that are being ended have ended."""
        servers = self.servers
        for task in self._leaving.values():
            task.cancel()
        await asyncio.gather(*self._leaving.values(), *self._closing, return_exceptions=True)
        await asyncio.gather(*(server.close(CLOSE_TIMEOUT_S) for server in servers))

    async def _let_go(self, server: Server) -> None:
        await server.wait_until_idle()
        task = self._leaving.pop(server)
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)
        await server.close(CLOSE_TIMEOUT_S)
        self._on_gone(server)
