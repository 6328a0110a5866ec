"""Pairs of a server and its gateway, which are restarted together, as the two of a pod are.

Owns the order of a restart: the gateway is asked to end and has ended before its server is replaced. Never tells a
balancer anything.
"""

from __future__ import annotations

import asyncio
from typing import Any

from tests.fakes.triton_http import FakeTriton, Script, tokens
from tests.gateway.process import GatewayProcess


def paced(gap_s: float) -> Any:
    """Return what answers with a token each `gap_s` seconds."""

    def answer(request: dict[str, Any]) -> Script:
        script = tokens(request)
        script.gap_s = gap_s
        return script

    return answer


class Pair:
    """A double of a server and a real gateway in front of it, on the same ports through all restarts.

    Args:
        options: of the gateway.
        gap_s: between two tokens.
    """

    def __init__(self, *options: str, gap_s: float = 0.02) -> None:
        self._options = options
        self.server = FakeTriton(answer=paced(gap_s))
        self.gateway = GatewayProcess(self.server, options=options)
        self.port, self.private_port = self.gateway.port, self.gateway.private_port
        #: Exit statuses of the gateways that have ended.
        self.statuses: list[int] = []

    async def start(self) -> None:
        """Start both, and wait until the gateway is ready."""
        await self.server.start()
        if self.statuses:
            self.gateway = GatewayProcess(self.server, options=self._options)
            self.gateway.port, self.gateway.private_port = self.port, self.private_port
        await self.gateway.__aenter__()

    async def end(self) -> None:
        """Wait until the gateway, which has been asked to, has ended; then end the server."""
        self.statuses.append(await self.gateway.status())
        await self.server.kill()

    async def kill(self) -> None:
        """End both at once."""
        await asyncio.gather(self.gateway.__aexit__(None, None, None), self.server.kill())
