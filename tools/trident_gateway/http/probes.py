"""What load balancers and orchestrators ask: whether to send requests, and whether to restart.

Owns the two answers. Never does anything about them.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from trident_gateway.http.answer import Send
from trident_gateway.http.lifecycle import Lifecycle, Phase

Probe = tuple[int, str]


class Probes:
    """The state of a gateway, as probes see it.

    Args:
        lifecycle: says whether it drains.
        has_model: returns whether a server with a model can be reached.
        is_stuck: returns whether engines have stood still for long while calls waited for them.
    """

    def __init__(self, lifecycle: Lifecycle, has_model: Callable[[], bool], is_stuck: Callable[[], bool]) -> None:
        self._lifecycle = lifecycle
        self._has_model = has_model
        self._is_stuck = is_stuck

    def readiness(self) -> Probe:
        """Return status and word of whether requests should be sent here."""
        if self._lifecycle.phase is not Phase.SERVING:
            return 503, "draining"
        return (200, "ready") if self._has_model() else (503, "no_model")

    def liveness(self) -> Probe:
        """Return status and word of whether this process does its work."""
        return (503, "stuck") if self._is_stuck() else (200, "live")


async def send_probe(send: Send, probe: Probe, request_id: str) -> None:
    """Answer with a probe's status and word."""
    status, word = probe
    await send_small(send, status, msgspec.json.encode({"status": word}), b"application/json", request_id=request_id)


async def send_small(
    send: Send,
    status: int,
    body: bytes,
    content_type: bytes,
    *,
    request_id: str,
    headers: tuple[tuple[bytes, bytes], ...] = (),
) -> None:
    """Send an answer that belongs to no request of the API."""
    head = [
        (b"content-type", content_type),
        (b"content-length", b"%d" % len(body)),
        (b"cache-control", b"no-store"),
        (b"x-request-id", request_id.encode()),
        *headers,
    ]
    await send({"type": "http.response.start", "status": status, "headers": head})
    await send({"type": "http.response.body", "body": body, "more_body": False})
