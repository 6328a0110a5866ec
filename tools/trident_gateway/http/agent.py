"""The port for the agent check of HAProxy, which asks each gateway what share of the load it should have.

Owns the one line that every connection is answered with, in HAProxy's words. Never reads anything.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from contextlib import suppress

from trident_ensemble.contract.errors import ServerError
from trident_gateway.http.probes import Probe

_BACKLOG = 128


def agent_line(readiness: Probe, fullness: float) -> bytes:
    """Return what HAProxy is told.

    `ready` ends the draining of a gateway that was here before: HAProxy keeps a server in it until it hears that.

    Args:
        readiness: of the gateway, as probes see it.
        fullness: how much of what its servers have is taken, from 0 to 1.
    """
    status, word = readiness
    if word == "draining":
        return b"drain\n"
    if status != 200:
        return b"down\n"
    return b"ready up %d%%\n" % max(1, round(100 * (1 - fullness)))


class AgentPort:
    """A port, which listens from the moment this object is made.

    Args:
        host: a name or an address.
        port: its number.

    Raises:
        ServerError: the port cannot be had.
    """

    def __init__(self, host: str, port: int) -> None:
        try:
            family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
            self._socket = socket.create_server(address[:2], family=family, backlog=_BACKLOG)
        except OSError as error:
            raise ServerError(f"--agent-port {port}: cannot listen on {host}: {error.strerror or error}") from error
        self._server: asyncio.Server | None = None

    async def start(self, line: Callable[[], bytes]) -> None:
        """Begin to answer each connection with the line of that moment."""

        async def answer(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(line())
            with suppress(OSError):
                await writer.drain()
            writer.close()

        self._server = await asyncio.start_server(answer, sock=self._socket)

    async def stop(self) -> None:
        """Close the port."""
        if self._server is None:
            self._socket.close()
        else:
            self._server.close()
