"""A client of one server over HTTP/1.1, with a pool of connections that are kept open.

Owns the pool, and how a request looks on the wire. Never retries a request of which a byte of the answer has come, and
never interprets an answer.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Coroutine, Iterable
from typing import Any
from urllib.parse import urlsplit

from trident_ensemble.contract.errors import ConfigError
from trident_gateway.upstream.connection import BodyTooLargeError, ConnectError, Connection, ConnectionLostError

_MAX_IDLE = 256
Headers = Iterable[tuple[bytes, bytes]]


class HttpClient:
    """The connections to one server.

    Args:
        url: `http://HOST:PORT`.
        connect_timeout_s: after which a connection that has not come about counts as refused.

    Raises:
        ConfigError: the URL is not of that form.
    """

    def __init__(self, url: str, connect_timeout_s: float = 2.0) -> None:
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
            self._authority = parts.netloc.encode("ascii")
        except ValueError as error:
            raise ConfigError(f"server {url}: {error}") from None
        if parts.scheme != "http" or not host or parts.path not in {"", "/"} or parts.query or parts.username:
            raise ConfigError(f"server {url}: must be of the form http://HOST:PORT")
        self._host = host
        self._port = port or 80
        self._connect_timeout_s = connect_timeout_s
        self._idle: list[Connection] = []
        self._busy: set[Connection] = set()
        self._heard_at = 0.0

    @property
    def silent_since(self) -> float | None:
        """When the server began to say nothing to anybody, in the time of the event loop; None if nothing is asked."""
        return max([self._heard_at, *(connection.heard_at for connection in self._busy)]) if self._busy else None

    @property
    def awaited_since(self) -> float | None:
        """Since when the server lets the one wait who has waited longest, in the time of the event loop; or None."""
        times = [connection.awaited_since for connection in self._busy]
        return min((time for time in times if time is not None), default=None)

    async def send(
        self, method: bytes, path: str, body: bytes = b"", headers: Headers = (), *, fresh: bool = False
    ) -> Response:
        """Send a request and return its answer, of which nothing has come yet.

        Args:
            method: GET or POST.
            path: with its query.
            body: JSON, for POST.
            headers: further headers.
            fresh: use a new connection, so that the request is sent once and never again.

        Raises:
            ConnectError: there is no server.
        """
        head = [b"%b %b HTTP/1.1\r\nhost: %b\r\n" % (method, path.encode("ascii"), self._authority)]
        head += [b"%b: %b\r\n" % header for header in headers]
        if method == b"POST":
            head.append(b"content-type: application/json\r\ncontent-length: %d\r\n" % len(body))
        request = b"%b\r\n%b" % (b"".join(head), body)
        connection = None if fresh else self._take_idle()
        is_reused = connection is not None
        if connection is None:
            connection = await self.connect()
        if not self._busy:
            self._heard_at = asyncio.get_running_loop().time()
        connection.send(request)
        self._busy.add(connection)
        return Response(self, connection, request, is_reused=is_reused)

    async def fetch(
        self, method: bytes, path: str, body: bytes = b"", *, headers: Headers = (), max_bytes: int, timeout_s: float
    ) -> tuple[int, bytes]:
        """Return the status and the whole body of an answer.

        Raises:
            ConnectError: there is no server.
            ConnectionLostError: the connection has failed.
            BodyTooLargeError: the body is longer than `max_bytes`.
            asyncio.TimeoutError: the answer was not complete `timeout_s` seconds after it was sent.
        """
        response = await self.send(method, path, body, headers)
        timer = asyncio.get_running_loop().call_later(timeout_s, response.interrupt, asyncio.TimeoutError())
        try:
            return await response.status(), await response.read_all(max_bytes)
        finally:
            timer.cancel()
            response.close()

    def fail_busy(self, error: Exception) -> None:
        """Give up all connections on which an answer is expected."""
        for connection in tuple(self._busy):
            connection.fail(error)

    def close(self) -> None:
        """Close all connections."""
        for connection in (*self._idle, *self._busy):
            connection.abort()
        self._idle.clear()

    async def connect(self) -> Connection:
        """Return a new connection.

        Raises:
            ConnectError: there is no server.
        """
        # Not `asyncio.wait_for`: before Python 3.12 it may swallow that its caller is cancelled.
        loop = asyncio.get_running_loop()
        connecting = loop.create_task(self._open(loop))
        is_abandoned = True
        try:
            await asyncio.wait({connecting}, timeout=self._connect_timeout_s)
            is_abandoned = not connecting.done()
        finally:
            if is_abandoned:
                connecting.add_done_callback(_abandon)
                connecting.cancel()
        if is_abandoned:
            raise ConnectError(f"{self._host}:{self._port}: no answer")
        try:
            return connecting.result()
        except OSError as error:
            raise ConnectError(f"{self._host}:{self._port}: {error}") from None

    async def _open(self, loop: asyncio.AbstractEventLoop) -> Connection:
        # The name is looked up here: uvloop's `create_connection` leaves its lookup behind when it is cancelled, and
        # the lookup's failure is then an error that nobody has asked for.
        found = await loop.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)
        refusal = OSError("the name has no address")
        for family, _, _, _, address in found:
            try:
                _, connection = await loop.create_connection(
                    lambda: Connection(loop), str(address[0]), self._port, family=family
                )
            except OSError as error:
                refusal = error
            else:
                return connection
        raise refusal

    def replace(self, old: Connection, new: Connection) -> None:
        """Count a connection as busy in the place of another."""
        self._busy.discard(old)
        self._busy.add(new)

    def give_back(self, connection: Connection) -> None:
        """Take a connection back after an answer; it is kept if it can be used again."""
        self._heard_at = max(self._heard_at, connection.heard_at)
        self._busy.discard(connection)
        if connection.is_reusable and len(self._idle) < _MAX_IDLE:
            connection.release()
            self._idle.append(connection)
        else:
            connection.abort()

    def _take_idle(self) -> Connection | None:
        while self._idle:
            connection = self._idle.pop()
            if connection.is_reusable:
                return connection
        return None


def _abandon(connecting: asyncio.Task[Connection]) -> None:
    """Close a connection that came about when nobody wanted it any more."""
    if not connecting.cancelled() and connecting.exception() is None:
        connecting.result().abort()


class Response:
    """One answer, which is read in pieces as they come."""

    def __init__(self, client: HttpClient, connection: Connection, request: bytes, *, is_reused: bool) -> None:
        self._client = client
        self._connection = connection
        self._request = request
        self._is_reused = is_reused
        self._interrupt: Exception | None = None
        self._is_closed = False

    @property
    def is_over(self) -> bool:
        """Whether nothing more will come: the whole answer is here, or the connection is lost."""
        return self._connection.is_over

    async def status(self) -> int:
        """Return the status.

        A connection from the pool may have been closed by the server at the moment of sending; then the request goes
        out on a new one. Where there is none to be had, the server may have died of the request: that is a loss.

        Raises:
            ConnectionLostError: the connection has failed.
        """
        try:
            return await self._connection.read_status()
        except ConnectionLostError as error:
            if not self._is_reused or not error.is_stale:
                raise
            lost = error
        self._is_reused = False
        try:
            connection = await self._client.connect()
        except ConnectError:
            raise lost from None
        connection.send(self._request)
        self._client.replace(self._connection, connection)
        self._connection = connection
        connection.interrupt(self._interrupt)
        return await connection.read_status()

    def read(self) -> Coroutine[Any, Any, bytes]:
        """Return what awaits the next piece of the body, which is b"" at its end.

        Raises:
            ConnectionLostError: when awaited, if the connection has failed.
        """
        return self._connection.read()

    async def read_all(self, max_bytes: int) -> bytes:
        """Return the rest of the body.

        Raises:
            ConnectionLostError: the connection has failed.
            BodyTooLargeError: it is longer than `max_bytes`.
        """
        pieces: list[bytes] = []
        size = 0
        while piece := await self.read():
            pieces.append(piece)
            size += len(piece)
            if size > max_bytes:
                raise BodyTooLargeError(f"more than {max_bytes} bytes")
        return b"".join(pieces)

    def interrupt(self, error: Exception | None) -> None:
        """Make the one who waits get an error, though the answer may still come; None takes it back."""
        self._interrupt = error
        self._connection.interrupt(error)

    def close(self) -> None:
        """Give the connection back, or hang up where the answer is not complete; may be called twice."""
        if not self._is_closed:
            self._is_closed = True
            self._client.give_back(self._connection)
