"""A port, and uvicorn behind it.

Owns the socket and uvicorn's server, which here neither handles signals nor logs. Never decides when it ends: uvicorn
would close its socket at the first signal, while load balancers still send requests to it.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import uvicorn

from trident_ensemble.contract.errors import ServerError
from trident_gateway.http.connection import connections
from trident_gateway.settings import HttpLimits

_BACKLOG = 2048
#: For connections to end by themselves, once nothing is to be sent on them.
_CLOSE_TIMEOUT_S = 2.0
#: A connection counts to their limit once its handshake is over, which therefore must not take long.
_HANDSHAKE_TIMEOUT_S = 10.0


class Port:
    """One port, which listens from the moment this object is made.

    Args:
        host: a name or an address.
        port: 0 for any free one.
        option: the command's option for the port, for the error.

    Raises:
        ServerError: the port cannot be had.
    """

    def __init__(self, host: str, port: int, option: str) -> None:
        try:
            family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
            self._socket = socket.create_server(address[:2], family=family, backlog=_BACKLOG)
        except OSError as error:
            raise ServerError(f"{option} {port}: cannot listen on {host}: {error.strerror or error}") from error
        self.host = host
        self.number: int = self._socket.getsockname()[1]
        #: What was refused before it was a request, by the status of the answer.
        self.refusals: Counter[int] = Counter()
        self._server: _Server | None = None
        self._task: asyncio.Task[None] | None = None

    async def start(self, application: Any, limits: HttpLimits, tls: ssl.SSLContext | None = None) -> None:
        """Begin to answer."""
        config = uvicorn.Config(
            application,
            loop="none",
            http=connections(limits, self.refusals),
            ws="none",
            lifespan="off",
            interface="asgi3",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=limits.idle_timeout_s,  # type: ignore[arg-type]
        )
        config.load()
        config.ssl = tls
        self._server = _Server(config)
        self._task = asyncio.get_running_loop().create_task(self._server.serve(sockets=[self._socket]))
        await self._server.is_up.wait()

    async def stop(self) -> None:
        """Close the socket and the connections; those that still have something to send get a moment for it."""
        if self._server is None or self._task is None:
            self._socket.close()
            return
        self._server.end()
        done, _ = await asyncio.wait({self._task}, timeout=_CLOSE_TIMEOUT_S)
        if not done:
            self._server.force_exit = True
            for connection in list(self._server.server_state.connections):
                connection.transport.abort()
            with suppress(asyncio.CancelledError):
                await asyncio.wait({self._task}, timeout=_CLOSE_TIMEOUT_S)

    @property
    def num_connections(self) -> int:
        """Number of open connections."""
        return 0 if self._server is None else len(self._server.server_state.connections)


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.is_up = asyncio.Event()
        self._ending: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def end(self) -> None:
        self.should_exit = True
        if not self._ending.done():
            self._ending.set_result(None)

    async def main_loop(self) -> None:
        # Uvicorn looks ten times a second; all that there is to do is the date of the answers, once a second.
        while not await self.on_tick(0):
            await asyncio.wait({self._ending}, timeout=1.0)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        # Uvicorn's own start knows no limit of a handshake's time.
        config = self.config
        assert sockets is not None

        def connection() -> asyncio.Protocol:
            return config.http_protocol_class(  # type: ignore[call-arg]
                config=config, server_state=self.server_state, app_state={"opened_at": loop.time()}
            )

        handshake_s = None if config.ssl is None else _HANDSHAKE_TIMEOUT_S
        loop = asyncio.get_running_loop()
        self.servers = [
            await loop.create_server(
                connection, sock=one, ssl=config.ssl, backlog=config.backlog, ssl_handshake_timeout=handshake_s
            )
            for one in sockets
        ]
        self.started = True
        self.is_up.set()
