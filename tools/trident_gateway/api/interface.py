"""What the endpoints need of the HTTP room, and what that room needs of them.

Owns the two protocols by which an endpoint reads a request and writes its answer, and the table of endpoints' shape.
Never knows a socket: the HTTP room turns an error that an endpoint raises into an answer, or into an event where an
answer has begun, and cancels an endpoint whose client has left.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from trident_gateway.errors import ApiError, error_event
from trident_gateway.observing.request_log import RequestRecord
from trident_gateway.observing.tracing import RequestSpan

Headers = Sequence[tuple[bytes, bytes]]


class HttpRequest(Protocol):
    """One request, as the HTTP room hands it over."""

    @property
    def path_params(self) -> Mapping[str, str]:
        """The variable parts of the path."""
        ...

    @property
    def record(self) -> RequestRecord:
        """What is written about the request when it has ended; endpoints fill it in."""
        ...

    @property
    def span(self) -> RequestSpan:
        """The trace of the request, which endpoints tell of the call to the server."""
        ...

    def header(self, name: str) -> str | None:
        """Return the value of a header by its name in lower case; None where it is absent."""
        ...

    async def body(self) -> bytes:
        """Return the whole body.

        Raises:
            ApiError: it is too large, comes too slowly, or is not of the kind that is expected.
        """
        ...


class AnswerSink(Protocol):
    """The place where an endpoint writes its answer: one JSON document, or a stream of server-sent events."""

    def add_headers(self, headers: Headers) -> None:
        """Add headers to whatever the answer will be, an error included; they must come before it begins."""
        ...

    async def send_json(self, body: bytes, status: int = 200) -> None:
        """Send the whole answer."""
        ...

    def expect_events(self, render_error: Callable[[ApiError], bytes] = error_event) -> None:
        """Announce that the answer will be a stream, so that a client that waits long is kept from giving up.

        Args:
            render_error: writes the last events of a stream that fails after its beginning.
        """
        ...

    async def send_events(self, events: bytes) -> None:
        """Send complete events with one write; the first call sends the head of the answer before.

        It waits while the client does not read, so that nobody reads on upstream.
        """
        ...

    async def end_events(self, events: bytes = b"") -> None:
        """Send the last events and end the answer, after which the endpoint is no longer cancelled.

        Clients hang up, or ask again, as soon as they have read the last event; so an endpoint settles what has been
        used before it.
        """
        ...


Handler = Callable[[HttpRequest, AnswerSink], Awaitable[None]]


@dataclass(frozen=True)
class Endpoint:
    """One method of one path.

    Args:
        method: in capitals.
        path: as Starlette's routes spell it.
        handle: answers it. It returns when everything is sent; it raises an `ApiError` for every other answer.
    """

    method: str
    path: str
    handle: Handler
