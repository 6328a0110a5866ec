"""One connection of a client: uvicorn's, with the limits and the form of errors that the gateway promises.

Owns what uvicorn leaves open before a request is understood: how long its head may take and how long it may be, how
many connections there may be, and that every refusal is JSON. Never looks at a path or a body.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import Counter
from typing import Any, ClassVar

from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle
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
#: Requests that may wait behind the one that runs while the connection is still read.
_MAX_AHEAD = 1


class _RefusedHeadError(Exception):
    """Leaves the parser when a head or trailers are refused; the refusal stands in the connection."""


class Connection(HttpToolsProtocol):
    """A connection with limits."""

    limits = HttpLimits()
    #: What was refused before it was a request, by the status of the answer.
    refusals: ClassVar[Counter[int]] = Counter()

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
        self._num_trailer_bytes = 0
        self._is_moving = False
        self._num_bytes_beside_body = 0
        self._running: RequestResponseCycle | None = None
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
        """Let go of the timers and tell the requests: the one that runs and those that wait for their turn."""
        self._stop_receive_timer()
        self._stop_send_timer()
        self._unset_keepalive_if_required()
        # Uvicorn knows of the last request alone, which is not the one that runs where a client sends ahead.
        waiting = [cycle for cycle, _ in self.pipeline]
        self.pipeline.clear()
        for cycle in (self._running, *waiting):
            if cycle is not None and not cycle.response_complete:
                cycle.disconnected = True
                cycle.message_event.set()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take bytes of a request, which are bounded while its head lasts."""
        if self.transport.is_closing():
            return
        if self._is_in_head and self._receive_timer is None:
            self._receive_timer = self.loop.call_later(self.limits.receive_timeout_s, self._give_up_on_head)
        # The parser keeps a line without an end to itself, so what it has been given is counted, not what it tells.
        self._num_head_bytes += len(data)
        self._is_moving = False
        super().data_received(data)
        if self._is_in_head or self._is_moving:
            self._num_bytes_beside_body = 0
        else:
            self._num_bytes_beside_body += len(data)
        most = self.limits.max_header_bytes
        num_bytes = self._num_head_bytes if self._is_in_head else self._num_bytes_beside_body
        if num_bytes > most and not self.transport.is_closing():
            self._refuse(HeadersTooLargeError(most))

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header, or drop a trailer: what comes after the body must not look as if it had been a header."""
        if self._is_in_head:
            super().on_header(name, value)
            return
        self._num_trailer_bytes += len(name) + len(value) + 4
        if self._num_trailer_bytes > self.limits.max_header_bytes:
            self._refusal = HeadersTooLargeError(self.limits.max_header_bytes)
            raise _RefusedHeadError

    def on_body(self, body: bytes) -> None:
        """Take a part of a body."""
        self._is_moving = True
        super().on_body(body)

    def on_headers_complete(self) -> None:
        """Start the request, if its head is within the limit."""
        num_bytes = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        if num_bytes > self.limits.max_header_bytes:
            self._refusal = HeadersTooLargeError(self.limits.max_header_bytes)
            raise _RefusedHeadError
        self._is_in_head = False
        self._is_moving = True
        self._num_trailer_bytes = 0
        self._stop_receive_timer()
        self._wait_for_body()
        super().on_headers_complete()
        # Uvicorn stops to read for the sake of what waits, and with it to see that the client hangs up.
        if self._is_sent_ahead and len(self.pipeline) <= _MAX_AHEAD:
            self.flow.resume_reading()

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

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    @property
    def _is_sent_ahead(self) -> bool:
        """Whether what arrives is a request that waits until the answer to another one has ended."""
        running = self._running
        return running is not None and not running.response_complete and (self._is_in_head or running is not self.cycle)

    def _wait_for_body(self) -> None:
        self._receive_timer = self.loop.call_later(self.limits.receive_timeout_s + _BODY_GRACE_S, self._give_up_on_body)

    def _give_up_on_body(self) -> None:
        self._receive_timer = None
        if self._is_sent_ahead:
            self._wait_for_body()
        else:
            self.timeout_keep_alive_handler()

    def _give_up_on_head(self) -> None:
        self._receive_timer = None
        if self._is_sent_ahead:
            self._receive_timer = self.loop.call_later(self.limits.receive_timeout_s, self._give_up_on_head)
        elif not self.transport.is_closing():
            seconds = self.limits.receive_timeout_s
            self._refuse(SlowRequestError(f"The head of the request did not arrive within {seconds:g} seconds."))

    def _refuse(self, error: ApiError) -> None:
        """Answer and close; where another answer is due first or this one has begun, only close."""
        self._stop_receive_timer()
        self._unset_keepalive_if_required()
        self.refusals[error.status] += 1
        is_begun = not self._is_in_head and self.cycle is not None and self.cycle.response_started
        if not self._is_sent_ahead and not is_begun:
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


def connections(limits: HttpLimits, refusals: Counter[int]) -> type[Connection]:
    """Return the class of connections with these limits, which count what they refuse, for uvicorn to make."""
    return type("Connection", (Connection,), {"limits": limits, "refusals": refusals})


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
