"""Traces of requests, as the rest of the gateway sees them.

Owns the two interfaces, and the doubles that stand in their place where nobody traces and cost nothing. Never imports
OpenTelemetry: `otlp` does, where traces are asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from trident_gateway.errors import Headers
from trident_gateway.observing.request_log import RequestRecord

#: The outputs of the ensemble that hold the server's times, in nanoseconds since 1970.
ENGINE_TIMES = ("arrival_time_ns", "first_scheduled_time_ns", "first_token_time_ns", "last_token_time_ns")


class RequestSpan(Protocol):
    """The trace of one request, which does nothing where the request is not sampled."""

    @property
    def wants_times(self) -> bool:
        """Whether the server shall be asked for its times (`return_perf_metrics`)."""
        ...

    def start_upstream(self) -> None:
        """Note that the call to the server begins, or the first one of several."""
        ...

    def headers(self) -> Headers:
        """Return the headers that hand the trace on to the server."""
        ...

    def add_engine_times(self, times: Mapping[str, Any]) -> None:
        """Take the server's times, by the names of its output tensors: numbers, or one for each sequence."""
        ...

    def finish(self, record: RequestRecord) -> None:
        """End the trace with what is known of the request."""
        ...


class Tracer(Protocol):
    """Begins traces of requests."""

    def start(self, headers: Sequence[tuple[bytes, bytes]], record: RequestRecord) -> RequestSpan:
        """Return the trace of a request that begins, as a part of its client's trace where its headers name one."""
        ...

    def close(self) -> None:
        """Send what waits, unless that takes too long."""
        ...


class NoSpan:
    """The span of a request that nobody traces."""

    wants_times = False

    def start_upstream(self) -> None:
        """Do nothing about the call."""

    def headers(self) -> Headers:
        """Return nothing to hand on."""
        return ()

    def add_engine_times(self, times: Mapping[str, Any]) -> None:
        """Do nothing with the times."""

    def finish(self, record: RequestRecord) -> None:
        """Do nothing at the end."""


NO_SPAN = NoSpan()


class NoTracer:
    """The tracer of a gateway that traces nothing."""

    def start(self, headers: Sequence[tuple[bytes, bytes]], record: RequestRecord) -> RequestSpan:  # noqa: ARG002
        """Return the span that does nothing."""
        return NO_SPAN

    def close(self) -> None:
        """Do nothing at the end."""
