"""One HTTP/1.1 connection to a server, which carries one request and its answer at a time.

Owns the state of the answer that is on its way: its status, the bytes that nobody has read yet, its end, and how it
failed. Never connects and never decides what a failure means.
"""

from __future__ import annotations

import asyncio
import socket
from typing import NoReturn, cast

import httptools

#: Bytes that may wait for a reader before the connection is read no further.
HIGH_WATER = 64 << 10
_MAX_HEAD_BYTES = 64 << 10
#: A node that has died, and so says nothing, is noticed after these seconds: idle, between probes, and probes.
_KEEPALIVE = (10, 5, 3)
#: A server that closes an unused connection does so before it knows of the request; one that dies of it takes longer.
_STALE_WITHIN_S = 0.05


class ConnectError(Exception):
    """No connection to the server could be made."""


class BodyTooLargeError(Exception):
    """An answer is longer than whoever asked wants to read."""


class ConnectionLostError(Exception):
    """A connection that has failed before the answer was complete.

    Args:
        message: what happened.
        is_stale: the server has closed it as the request was sent, as it may with one that was long unused.
    """

    def __init__(self, message: str, *, is_stale: bool = False) -> None:
        super().__init__(message)
        self.is_stale = is_stale


class Connection(asyncio.Protocol):
    """A connection as the event loop sees it, and as one reader sees it.

    A reader that does not come back makes the kernel's buffers fill and then the server wait: at most `HIGH_WATER`
    bytes and what one read of the event loop brings are held here.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._transport: asyncio.Transport | None = None
        self._chunks: list[bytes] = []
        # What the parser calls for each piece of a body, looked up once when it is made.
        self.on_body = self._chunks.append
        self._parser = httptools.HttpResponseParser(self)
        self._num_waiting_bytes = 0
        self._waiter: asyncio.Future[None] | None = None
        self._is_paused = False
        self._is_busy = False
        self._has_begun = False
        self._is_complete = False
        self._keeps_alive = False
        self._error: Exception | None = None
        self._interrupt: Exception | None = None
        #: The status of the answer; 0 until it has come.
        self.status = 0
        self._sent_at = float("-inf")
        #: When bytes last came, in the time of the event loop.
        self.heard_at = float("-inf")

    @property
    def is_reusable(self) -> bool:
        """Whether another request may be sent: the last answer came to its end, and the connection is open."""
        return self._error is None and self._keeps_alive and self._is_complete and not self._chunks

    @property
    def is_over(self) -> bool:
        """Whether nothing more will come of the answer: all of it is here, be it read or not, or it has failed."""
        return self._is_complete or self._error is not None

    @property
    def awaited_since(self) -> float | None:
        """When the server last sent something of an answer that is its to go on with; None if it is not its turn.

        It is not where the answer is over, and where nobody here reads what there is.
        """
        return None if self.is_over or self._is_paused else max(self._sent_at, self.heard_at)

    def send(self, request: bytes) -> None:
        """Send a request, of which the answer may be read then."""
        assert not self._is_busy
        self._sent_at = self._loop.time()
        self._is_busy, self._has_begun, self._is_complete, self._keeps_alive = True, False, False, False
        self._interrupt, self._num_waiting_bytes, self.status = None, 0, 0
        if self._transport is None or self._transport.is_closing():
            self.fail(ConnectionLostError("the server has closed the connection", is_stale=True))
        else:
            self._transport.write(request)

    async def read_status(self) -> int:
        """Return the status of the answer when its head has come.

        Raises:
            ConnectionLostError: the connection has failed.
        """
        while self.status < 200:
            if self._error is not None or self._interrupt is not None:
                self._raise()
            self._waiter = waiter = self._loop.create_future()
            try:
                await waiter
            finally:
                self._waiter = None
        return self.status

    async def read(self) -> bytes:
        """Return what has come of the body since the last call, at least one byte; b"" at its end.

        Raises:
            ConnectionLostError: the connection has failed.
        """
        chunks = self._chunks
        if self._interrupt is not None:
            raise self._interrupt
        while not chunks:
            if self._is_complete:
                return b""
            if self._error is not None or self._interrupt is not None:
                self._raise()
            self._waiter = waiter = self._loop.create_future()
            try:
                await waiter
            finally:
                self._waiter = None
        data = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        chunks.clear()
        self._num_waiting_bytes = 0
        if self._is_paused:
            self._is_paused = False
            assert self._transport is not None
            self._transport.resume_reading()
        return data

    def release(self) -> None:
        """Make the connection ready for the next request; it must be reusable."""
        assert self.is_reusable
        self._is_busy = False

    def interrupt(self, error: Exception | None) -> None:
        """Make whoever reads the answer get an error, though the answer may still come; None takes it back."""
        self._interrupt = error
        self._wake()

    def fail(self, error: Exception) -> None:
        """Give the connection up; whoever waits for the answer gets the error, unless the answer is complete."""
        if self._error is None:
            self._error = error
        if self._transport is not None:
            self._transport.abort()
        self._wake()

    def abort(self) -> None:
        """Close the connection at once."""
        self.fail(ConnectionLostError("the connection was closed here"))

    def _raise(self) -> NoReturn:
        error = self._interrupt or self._error
        assert error is not None
        raise error

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    # What the event loop calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        _watch_peer(transport.get_extra_info("socket"))

    def data_received(self, data: bytes) -> None:
        self.heard_at = self._loop.time()
        self._has_begun = True
        self._num_waiting_bytes += len(data)
        if not self._is_busy:
            self.fail(ConnectionLostError("the server sends what nobody asked for"))
            return
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self.fail(ConnectionLostError("the server does not speak HTTP/1.1"))
            return
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            if self._chunks or self._is_complete or self.status >= 200:
                waiter.set_result(None)
            elif self._num_waiting_bytes > _MAX_HEAD_BYTES:
                self.fail(ConnectionLostError("the head of the answer is too large"))
        elif self._num_waiting_bytes > HIGH_WATER and not self._is_paused and not self._is_complete:
            self._is_paused = True
            assert self._transport is not None
            self._transport.pause_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._error is None:
            message = "the server has closed the connection" if exc is None else f"the connection broke: {exc}"
            is_at_once = self._loop.time() - self._sent_at <= _STALE_WITHIN_S
            self._error = ConnectionLostError(message, is_stale=is_at_once and not self._has_begun)
        self._wake()

    # What the parser calls.

    def on_headers_complete(self) -> None:
        self.status = self._parser.get_status_code()

    def on_message_complete(self) -> None:
        if self.status >= 200:
            self._is_complete = True
            self._keeps_alive = self._parser.should_keep_alive()


def _watch_peer(peer: socket.socket) -> None:
    """Have the kernel find out that the other machine is gone, though nothing is sent to it."""
    idle, interval, count = _KEEPALIVE
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (
        ("TCP_KEEPIDLE", idle),
        ("TCP_KEEPINTVL", interval),
        ("TCP_KEEPCNT", count),
        ("TCP_USER_TIMEOUT", (idle + interval * count) * 1000),
    ):
        option = getattr(socket, name, None)
        if option is not None:
            peer.setsockopt(socket.IPPROTO_TCP, option, value)
