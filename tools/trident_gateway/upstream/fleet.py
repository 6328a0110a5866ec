"""All servers behind the gateway, and the models that they serve together.

Owns the servers, the catalogue of their models, and who waits for news of them. Never sends a call.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from random import Random

from trident_gateway.settings import ServerAddress
from trident_gateway.upstream.balancer import pick
from trident_gateway.upstream.catalogue import Catalogue
from trident_gateway.upstream.health import Level
from trident_gateway.upstream.served_model import ServedModel
from trident_gateway.upstream.server import Server, WatchTimes

_CLOSE_TIMEOUT_S = 5.0
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ServerStatus:
    """The state of a server, as metrics show it.

    Args:
        server: its name, `HOST:PORT`.
        is_ready: it is in rotation.
        num_in_flight: calls that it has.
        num_ejections: how often it was taken out of rotation for failures.
        is_awaited: calls have waited for its next byte for some seconds.
        num_steps: that its engines have made; None where that was not heard lately.
    """

    server: str
    is_ready: bool
    num_in_flight: int
    num_ejections: int
    is_awaited: bool
    num_steps: float | None


class Fleet:
    """All servers, each watched by itself.

    Args:
        addresses: the servers.
        times: how they are watched.
        draw: where chance comes from.
    """

    def __init__(self, addresses: Sequence[ServerAddress], times: WatchTimes, draw: Random) -> None:
        self._draw = draw
        self._catalogue = Catalogue()
        self._news = asyncio.Event()
        servers = [Server(address, times, self._models_read, self._tell_news) for address in addresses]
        self._servers = {server.name: server for server in servers}
        self._watches: list[asyncio.Task[None]] = []
        #: Choices, by server and reason: `only`, `affinity`, `load`; `retry` where another was chosen before.
        self.picks: Counter[tuple[str, str]] = Counter()

    @property
    def is_ready(self) -> bool:
        """Whether there is a model and a server that is ready for it."""
        return any(self._level(name) is Level.READY for name in self._catalogue.models)

    @property
    def conflicts(self) -> frozenset[str]:
        """Models on which servers do not agree, so that only some of them serve it."""
        return self._catalogue.conflicts

    def models(self) -> Mapping[str, ServedModel]:
        """Return all models by their served names."""
        return self._catalogue.models

    def find(self, name: str) -> ServedModel | None:
        """Return the model of a served name or an alias; None if there is none."""
        return self._catalogue.find(name)

    def status(self) -> list[ServerStatus]:
        """Return the state of each server."""
        return [
            ServerStatus(
                server.name,
                server.level is Level.READY,
                server.num_in_flight,
                server.health.num_ejections,
                server.is_awaited,
                server.num_steps,
            )
            for server in self._servers.values()
        ]

    async def start(self) -> None:
        """Look at all servers once and begin to watch them; returns also when none of them answers."""
        await asyncio.gather(*(server.look() for server in self._servers.values()))
        loop = asyncio.get_running_loop()
        self._watches = [loop.create_task(server.watch()) for server in self._servers.values()]

    async def close(self) -> None:
        """Stop watching, and close all connections when calls that are being ended have ended."""
        for watch in self._watches:
            watch.cancel()
        await asyncio.gather(*self._watches, return_exceptions=True)
        await asyncio.gather(*(server.close(_CLOSE_TIMEOUT_S) for server in self._servers.values()))

    def pick(self, model: ServedModel, affinity: bytes, tried: Collection[str]) -> tuple[Server, ServedModel] | None:
        """Return a server that was not tried, of the best kind that there is, and the model as it has it.

        Returns None if all that were not tried are down.
        """
        name = model.card.name
        servers = [self._servers[server] for server in self._catalogue.servers(name)]
        levels = {server.name: server.level for server in servers if server.name not in tried}
        best = max(levels.values(), default=Level.DOWN)
        if best is Level.DOWN:
            return None
        candidates = [
            server.candidate(self._catalogue.on_server(server.name, name))
            for server in servers
            if levels.get(server.name) is best
        ]
        choice = pick(candidates, affinity, self._draw)
        self.picks[choice.name, "retry" if tried else choice.reason] += 1
        return self._servers[choice.name], self._catalogue.on_server(choice.name, name)

    def has(self, model: ServedModel) -> bool:
        """Return whether any server serves a model, be it down at present."""
        return bool(self._catalogue.servers(model.card.name))

    async def wait_for_news(self, until: float) -> None:
        """Wait until some server has been looked at again, or until a time of the event loop."""
        timer = asyncio.get_running_loop().call_at(until, self._tell_news)
        try:
            await self._news.wait()
        finally:
            timer.cancel()

    def _level(self, name: str) -> Level:
        return max((self._servers[server].level for server in self._catalogue.servers(name)), default=Level.DOWN)

    def _tell_news(self) -> None:
        news, self._news = self._news, asyncio.Event()
        news.set()

    def _models_read(self, server: Server, models: Sequence[ServedModel]) -> None:
        before = self._catalogue.conflicts
        if self._catalogue.update(server.name, models):
            names = ", ".join(sorted(model.card.name for model in models)) or "nothing"
            _log.info("server %s serves %s", server.name, names)
        for name in self._catalogue.conflicts - before:
            _log.warning("servers do not agree on model %s: only %s serve it", name, self._catalogue.servers(name))
