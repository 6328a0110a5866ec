"""Traces of requests.

Owns the spans of a request and their names. Never puts into one what a client or a model has written.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol


class RequestSpan(Protocol):
    """The trace of one request, which does nothing where the request is not sampled."""

    @property
    def wants_times(self) -> bool:
        """Whether the server shall be asked for its times (`return_perf_metrics`)."""
        ...

    def headers(self) -> tuple[tuple[bytes, bytes], ...]:
        """Return the headers that hand the trace on to the server."""
        ...

    def start_upstream(self) -> None:
        """Note that the call to the server begins."""
        ...

    def add_engine_times(self, times: Mapping[str, float]) -> None:
        """Take the server's times, by the names of its output tensors."""
        ...


class NoSpan:
    """The span of a request that nobody traces."""

    wants_times = False

    def headers(self) -> tuple[tuple[bytes, bytes], ...]:
        """Return nothing to hand on."""
        return ()

    def start_upstream(self) -> None:
        """Do nothing about the call."""

    def add_engine_times(self, times: Mapping[str, float]) -> None:
        """Do nothing with the times."""
