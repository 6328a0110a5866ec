"""One connection of a client: uvicorn's, with the limits and the form of errors that the gateway promises.

Owns what uvicorn leaves open before a request is understood: how long its head may take and how long it may be, how
many connections there may be, and that every refusal is JSON. Never looks at a path or a body.
"""

from __future__ import annotations

import asyncio
import secrets
from typing import Any

from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol
from uvicorn.server import ServerState

from trident_gateway.errors import (
    ApiError,
    HeadersTooLargeError,
    InvalidRequestError,
    OverloadedError,
    SlowRequestError,
)
from trident_gateway.settings import HttpLimits

#: What a body gets beyond its time, so that the request that reads it is the one to refuse it.
_BODY_GRACE_S = 5.0


class _RefusedHeadError(Exception):
    """Leaves the parser when a head is refused; the refusal stands in the connection."""


class Connection(HttpToolsProtocol):
    """A connection with limits."""

    limits = HttpLimits()

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._receive_timer: asyncio.TimerHandle | None = None
        self._send_timer: asyncio.TimerHandle | None = None
        self._is_in_head = True
        self._num_head_bytes = 0
        self._refusal: ApiError | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take a new connection, or refuse it where there are too many."""
        super().connection_made(transport)
        if len(self.connections) > self.limits.max_connections:
            self._refuse(OverloadedError("Too many connections are open."))
            return
        # Until its first byte uvicorn would wait for ever.
        self.timeout_keep_alive_task = self.loop.call_later(self.limits.idle_timeout_s, self.timeout_keep_alive_handler)

    def connection_lost(self, exc: Exception | None) -> None:
        """Let go of the timers; uvicorn tells the request."""
        self._stop_receive_timer()
        self._stop_send_timer()
        self._unset_keepalive_if_required()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take bytes of a request, which are bounded while its head lasts."""
        if self.transport.is_closing():
            return
        if self._is_in_head and self._receive_timer is None:
            self._receive_timer = self.loop.call_later(self.limits.receive_timeout_s, self._give_up_on_head)
        # The parser keeps a line without an end to itself, so what it has been given is counted, not what it tells.
        self._num_head_bytes += len(data)
        super().data_received(data)
        if self._is_in_head and self._num_head_bytes > self.limits.max_header_bytes and not self.transport.is_closing():
            self._refuse(HeadersTooLargeError(self.limits.max_header_bytes))

    def on_headers_complete(self) -> None:
        """Start the request, if its head is within the limit."""
        num_bytes = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        if num_bytes > self.limits.max_header_bytes:
            self._refusal = HeadersTooLargeError(self.limits.max_header_bytes)
            raise _RefusedHeadError
        self._is_in_head = False
        self._stop_receive_timer()
        self._receive_timer = self.loop.call_later(
            self.limits.receive_timeout_s + _BODY_GRACE_S, self.timeout_keep_alive_handler
        )
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """Note that the request is there as a whole."""
        self._stop_receive_timer()
        self._is_in_head = True
        self._num_head_bytes = 0
        super().on_message_complete()

    def pause_writing(self) -> None:
        """Wait for a client that does not read, for a time."""
        super().pause_writing()
        self._send_timer = self.loop.call_later(self.limits.send_timeout_s, self.transport.abort)

    def resume_writing(self) -> None:
        """Go on, as the client reads again."""
        self._stop_send_timer()
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 (uvicorn's)
        """Refuse what is not HTTP in the form in which everything is refused."""
        self._refuse(
            self._refusal or InvalidRequestError("The request is not valid HTTP/1.1.", code="invalid_http_request")
        )

    def _give_up_on_head(self) -> None:
        self._receive_timer = None
        if not self.transport.is_closing():
            seconds = self.limits.receive_timeout_s
            self._refuse(SlowRequestError(f"The head of the request did not arrive within {seconds:g} seconds."))

    def _refuse(self, error: ApiError) -> None:
        """Answer and close; where another answer has begun on this connection, only close."""
        self._stop_receive_timer()
        self._unset_keepalive_if_required()
        if self.cycle is None or self.cycle.response_complete or not self.cycle.response_started:
            self.transport.write(_rendered(error, self.server_state.default_headers))
        self.transport.close()

    def _stop_receive_timer(self) -> None:
        if self._receive_timer is not None:
            self._receive_timer.cancel()
            self._receive_timer = None

    def _stop_send_timer(self) -> None:
        if self._send_timer is not None:
            self._send_timer.cancel()
            self._send_timer = None


def connections(limits: HttpLimits) -> type[Connection]:
    """Return the class of connections with these limits, for uvicorn to make."""
    return type("Connection", (Connection,), {"limits": limits})


def _rendered(error: ApiError, default_headers: list[tuple[bytes, bytes]]) -> bytes:
    body = error.body()
    headers = [
        *default_headers,
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(body)),
        (b"cache-control", b"no-store"),
        (b"x-request-id", f"req_{secrets.token_hex(16)}".encode()),
        *(header for header in error.headers if header[0] != b"connection"),
        (b"connection", b"close"),
    ]
    lines = b"".join(b"%b: %b\r\n" % header for header in headers)
    return STATUS_LINE[error.status] + lines + b"\r\n" + body
