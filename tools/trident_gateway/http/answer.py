"""The answer to one request: a JSON document or a stream of server-sent events.

Owns the head of an answer, when it leaves, and the comments that keep a silent stream alive. Never makes a body, except
that of an error.

A stream's head leaves with its first events, so that whatever is refused until then has a status of its own. A stream
that is silent for too long gets a comment, and with it its head; what fails after that is an event.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from trident_gateway.errors import ApiError, error_event
from trident_gateway.http.lifecycle import Lifecycle, Phase, RunningRequest
from trident_gateway.observing.metrics import Metrics
from trident_gateway.observing.request_log import RequestRecord

Send = Callable[[Any], Awaitable[None]]

_JSON_HEADERS = [(b"content-type", b"application/json"), (b"cache-control", b"no-store")]
_EVENT_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]
_COMMENT = b": keep-alive\n\n"
_CLOSE = (b"connection", b"close")


class Answer:
    """The way back to one client. Only the task of its request may use it.

    Args:
        send: of ASGI.
        record: of the request; takes status and times.
        running: is told when everything has been sent.
        lifecycle: says whether the connection is to be used again.
        metrics: takes the gaps of streams.
        keep_alive_s: of silence until a comment is sent; 0 for never.
    """

    def __init__(
        self,
        send: Send,
        *,
        record: RequestRecord,
        running: RunningRequest,
        lifecycle: Lifecycle,
        metrics: Metrics,
        keep_alive_s: float,
    ) -> None:
        self._send = send
        self._record = record
        self._running = running
        self._lifecycle = lifecycle
        self._metrics = metrics
        self._keep_alive_s = keep_alive_s
        self._loop = asyncio.get_running_loop()
        # The loop's own clock stands still within one of its rounds.
        self._began = time.monotonic()
        self._headers: list[tuple[bytes, bytes]] = [(b"x-request-id", record.request_id.encode())]
        self._render_error: Callable[[ApiError], bytes] = error_event
        self._has_started = False
        self._last_sent = 0.0
        self._observe_gap: Callable[[float], None] | None = None
        self._is_sending = False
        self._silence_timer: asyncio.TimerHandle | None = None
        self._comment: asyncio.Task[None] | None = None

    @property
    def has_started(self) -> bool:
        """Whether the head of the answer has left, so that its status stands."""
        return self._has_started

    @property
    def is_complete(self) -> bool:
        """Whether everything has been sent."""
        return self._running.is_answered

    @property
    def seconds(self) -> float:
        """Seconds since the request's head was there."""
        return time.monotonic() - self._began

    def add_headers(self, headers: Iterable[tuple[bytes, bytes]]) -> None:
        """Add headers to whatever the answer will be, an error included; they must come before it begins."""
        self._headers += headers

    async def send_json(self, body: bytes, status: int = 200) -> None:
        """Send the whole answer."""
        self._check()
        assert not self._has_started, "an answer is sent once"
        await self._send_whole(body, status, ())

    def expect_events(self, render_error: Callable[[ApiError], bytes] = error_event) -> None:
        """Announce that the answer will be a stream; from now on silence is ended by comments."""
        self._render_error = render_error
        self._record.is_stream = True
        if self._keep_alive_s and self._silence_timer is None:
            self._last_sent = time.monotonic()
            self._silence_timer = self._loop.call_later(self._keep_alive_s, self._break_silence)

    async def send_events(self, events: bytes) -> None:
        """Send complete events with one write; the first call sends the head of the answer before.

        It waits while the client does not read.
        """
        self._check()
        now = time.monotonic()
        if self._observe_gap is None:
            self._record.ttft_s = now - self._began
            self._observe_gap = self._metrics.gaps_of(self._record.model, self._record.side)
        else:
            self._observe_gap(now - self._last_sent)
        await self._write(events)

    async def end_events(self, events: bytes = b"") -> None:
        """Send the last events and end the answer; the handler is not cancelled after that."""
        if self._comment is not None:
            await self._comment
        if not self._has_started:
            await self._start_events()
        self._stop_timer()
        # From here on nothing is lost if the client hangs up, which it may do as soon as it has read the end.
        self._running.is_answered = True
        await self._send({"type": "http.response.body", "body": events, "more_body": False})

    async def finish(self) -> None:
        """End what a handler has left open."""
        if not self.is_complete:
            assert self._has_started, "a handler that returns has answered"
            await self.end_events()

    async def fail(self, error: ApiError) -> None:
        """Send an error: as the answer, or as the last event of a stream that has begun."""
        self._record.is_error = True
        self._record.error_code = error.code or error.type
        if self.is_complete:
            return
        if self._comment is not None:
            await self._comment
        if self._has_started:
            await self.end_events(self._render_error(error))
        else:
            await self._send_whole(error.body(), error.status, error.headers)

    def close(self) -> None:
        """Let go of the timer, however the request has ended."""
        self._stop_timer()

    def _check(self) -> None:
        """End a handler that has missed its cancellation, which `asyncio.wait_for` may swallow before Python 3.12."""
        if self._running.is_cancelled:
            raise asyncio.CancelledError

    def _break_silence(self) -> None:
        """Send a comment if nothing else has been sent for long enough, and look again later."""
        silence_s = time.monotonic() - self._last_sent
        delay_s = self._keep_alive_s - silence_s
        if delay_s <= 0:
            delay_s = self._keep_alive_s
            # A client that does not even read what there is needs no comment.
            if not self._is_sending and self._comment is None:
                self._comment = self._loop.create_task(self._send_comment())
        self._silence_timer = self._loop.call_later(delay_s, self._break_silence)

    async def _send_comment(self) -> None:
        try:
            if not self._has_started:
                await self._start_events()
            await self._send({"type": "http.response.body", "body": _COMMENT, "more_body": True})
        finally:
            self._comment = None

    async def _write(self, events: bytes) -> None:
        if self._comment is not None:
            await self._comment
        self._is_sending = True
        if not self._has_started:
            await self._start_events()
        await self._send({"type": "http.response.body", "body": events, "more_body": True})
        self._is_sending = False
        self._last_sent = time.monotonic()

    async def _start_events(self) -> None:
        self._has_started = True
        self._record.status = 200
        await self._send({"type": "http.response.start", "status": 200, "headers": self._head(_EVENT_HEADERS)})

    async def _send_whole(self, body: bytes, status: int, headers: Iterable[tuple[bytes, bytes]]) -> None:
        self._stop_timer()
        self._has_started = True
        self._record.status = status
        head = self._head(_JSON_HEADERS)
        head += (header for header in headers if header not in head)
        head.append((b"openai-processing-ms", b"%d" % (self.seconds * 1000)))
        head.append((b"content-length", b"%d" % len(body)))
        await self._send({"type": "http.response.start", "status": status, "headers": head})
        self._running.is_answered = True
        await self._send({"type": "http.response.body", "body": body, "more_body": False})

    def _head(self, headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
        closing = [] if self._lifecycle.phase is Phase.SERVING else [_CLOSE]
        return [*headers, *self._headers, *closing]

    def _stop_timer(self) -> None:
        if self._silence_timer is not None:
            self._silence_timer.cancel()
            self._silence_timer = None
