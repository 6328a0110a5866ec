"""The application behind the private port: metrics, probes and the request to drain.

Owns these four paths. Never answers a client of the API.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from trident_gateway.errors import ApiError, MethodNotAllowedError, NotFoundError
from trident_gateway.http.answer import Send
from trident_gateway.http.probes import Probes, send_probe, send_small
from trident_gateway.http.request import Receive
from trident_gateway.observing.metrics import CONTENT_TYPE, Metrics


class PrivateApplication:
    """An ASGI application for operators.

    Args:
        probes: answers `/ready` and `/live`.
        metrics: stands at `/metrics`.
        drain: begins to drain, if that has not begun.
    """

    def __init__(self, probes: Probes, metrics: Metrics, drain: Callable[[], None]) -> None:
        self._probes = probes
        self._metrics = metrics
        self._drain = drain
        self._paths: dict[str, tuple[str, Callable[[Send], Awaitable[None]]]] = {
            "/metrics": ("GET", self._send_metrics),
            "/ready": ("GET", self._send_readiness),
            "/live": ("GET", self._send_liveness),
            "/drain": ("POST", self._begin_drain),
        }

    async def __call__(self, scope: Any, _receive: Receive, send: Send) -> None:
        """Answer one request."""
        try:
            method, answer = self._paths[scope["path"]]
        except KeyError:
            await _send_error(send, NotFoundError())
            return
        if method != ("GET" if scope["method"] == "HEAD" else scope["method"]):
            await _send_error(send, MethodNotAllowedError((method,)))
            return
        await answer(send)

    async def _send_metrics(self, send: Send) -> None:
        await send_small(send, 200, self._metrics.render(), CONTENT_TYPE.encode())

    async def _send_readiness(self, send: Send) -> None:
        await send_probe(send, self._probes.readiness())

    async def _send_liveness(self, send: Send) -> None:
        await send_probe(send, self._probes.liveness())

    async def _begin_drain(self, send: Send) -> None:
        self._drain()
        await send_probe(send, (202, "draining"))


async def _send_error(send: Send, error: ApiError) -> None:
    await send_small(send, error.status, error.body(), b"application/json", error.headers)
