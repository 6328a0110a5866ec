"""The application behind the private port: metrics, probes and the request to drain.

Owns these four paths. Never answers a client of the API.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from trident_gateway.errors import ApiError, MethodNotAllowedError, NotFoundError
from trident_gateway.http.answer import Send
from trident_gateway.http.origins import check_no_page
from trident_gateway.http.probes import Probes, send_probe, send_small
from trident_gateway.http.request import Receive, request_id_of
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
        self._paths: dict[str, tuple[str, Callable[[Send, str], Awaitable[None]]]] = {
            "/metrics": ("GET", self._send_metrics),
            "/ready": ("GET", self._send_readiness),
            "/live": ("GET", self._send_liveness),
            "/drain": ("POST", self._begin_drain),
        }

    async def __call__(self, scope: Any, _receive: Receive, send: Send) -> None:
        """Answer one request."""
        request_id = request_id_of(scope["headers"])
        try:
            check_no_page(scope["headers"])
            answer = self._find(scope["method"], scope["path"])
        except ApiError as error:
            await send_small(
                send, error.status, error.body(), b"application/json", request_id=request_id, headers=error.headers
            )
        else:
            await answer(send, request_id)

    def _find(self, method: str, path: str) -> Callable[[Send, str], Awaitable[None]]:
        try:
            allowed, answer = self._paths[path]
        except KeyError:
            raise NotFoundError from None
        if allowed != ("GET" if method == "HEAD" else method):
            raise MethodNotAllowedError((allowed,))
        return answer

    async def _send_metrics(self, send: Send, request_id: str) -> None:
        await send_small(send, 200, self._metrics.render(), CONTENT_TYPE.encode(), request_id=request_id)

    async def _send_readiness(self, send: Send, request_id: str) -> None:
        await send_probe(send, self._probes.readiness(), request_id)

    async def _send_liveness(self, send: Send, request_id: str) -> None:
        await send_probe(send, self._probes.liveness(), request_id)

    async def _begin_drain(self, send: Send, request_id: str) -> None:
        self._drain()
        await send_probe(send, (202, "draining"), request_id)
