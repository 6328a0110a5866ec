"""A request as the endpoints read it.

Owns its headers and how its body is read: how large, of which kind, in which time. Never decodes a body.
"""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from trident_gateway.errors import BodyTooLargeError, MediaTypeError, SlowRequestError
from trident_gateway.http.lifecycle import RunningRequest
from trident_gateway.observing.request_log import RequestRecord
from trident_gateway.observing.tracing import RequestSpan
from trident_gateway.settings import HttpLimits

Receive = Callable[[], Awaitable[Any]]

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,128}")
_JSON = re.compile(r'application/json[ \t]*(;[ \t]*charset[ \t]*=[ \t]*"?utf-8"?[ \t]*;?[ \t]*)?', re.IGNORECASE)


class IncomingRequest:
    """One request, whose head is there.

    Args:
        headers: of ASGI, names in lower case.
        receive: of ASGI.
        record: of the request.
        span: of the request.
        running: is told if the client goes away meanwhile.
        limits: of bodies.
    """

    def __init__(
        self,
        headers: list[tuple[bytes, bytes]],
        receive: Receive,
        *,
        record: RequestRecord,
        span: RequestSpan,
        running: RunningRequest,
        limits: HttpLimits,
    ) -> None:
        self._headers = headers
        self._receive = receive
        #: The variable parts of the path; set by whoever finds its endpoint.
        self.path_params: Mapping[str, str] = {}
        self.record = record
        self.span = span
        self._running = running
        self._limits = limits
        self._watcher: asyncio.Task[None] | None = None

    def header(self, name: str) -> str | None:
        """Return the value of a header by its name in lower case; None where it is absent."""
        wanted = name.encode()
        for key, value in self._headers:
            if key == wanted:
                return value.decode("latin-1")
        return None

    async def body(self) -> bytes:
        """Return the whole body, and watch from then on whether the client stays.

        Raises:
            ApiError: it is too large, comes too slowly, or is not JSON.
        """
        self._check_head()
        # Not `asyncio.wait_for`: before Python 3.12 it may swallow that the request is cancelled.
        reading = asyncio.get_running_loop().create_task(self._read())
        seconds = self._limits.receive_timeout_s
        try:
            await asyncio.wait({reading}, timeout=seconds)
        finally:
            reading.cancel()
            if reading.done() and not reading.cancelled():
                reading.exception()  # which nobody asks for where the request was cancelled meanwhile
        if not reading.done():
            raise SlowRequestError(f"The body did not arrive within {seconds:g} seconds.")
        body = reading.result()
        self.watch()
        return body

    def watch(self) -> None:
        """Have the request cancelled when its client goes away. Nobody may read a body any more."""
        self._watcher = asyncio.get_running_loop().create_task(self._watch())

    def unwatch(self) -> None:
        """End the watch, when the request has ended."""
        if self._watcher is not None:
            self._watcher.cancel()

    def _check_head(self) -> None:
        if not _JSON.fullmatch((self.header("content-type") or "").strip()):
            raise MediaTypeError
        if (self.header("content-encoding") or "identity").strip().lower() != "identity":
            raise MediaTypeError
        length = self.header("content-length")
        if length is not None and int(length) > self._limits.max_body_bytes:
            raise BodyTooLargeError(self._limits.max_body_bytes)

    async def _read(self) -> bytes:
        parts: list[bytes] = []
        num_bytes = 0
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                self._running.is_client_gone = True
                raise asyncio.CancelledError
            part = message.get("body", b"")
            num_bytes += len(part)
            if num_bytes > self._limits.max_body_bytes:
                raise BodyTooLargeError(self._limits.max_body_bytes)
            parts.append(part)
            if not message.get("more_body", False):
                return parts[0] if len(parts) == 1 else b"".join(parts)

    async def _watch(self) -> None:
        # Parts of a body that no endpoint asked for are passed over.
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._running.leave()


def request_id_of(headers: list[tuple[bytes, bytes]]) -> str:
    """Return the client's own id for its request, if it is a valid one, or else a random one."""
    for name, value in headers:
        if name == b"x-request-id" and _REQUEST_ID.fullmatch(value):
            return value.decode()
    return f"req_{secrets.token_hex(16)}"
