"""All servers behind the gateway, on both sides, and the models that they serve together.

Owns the servers, the catalogues of their models, and who waits for news of them. Never sends a call.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from random import Random

from trident_gateway.settings import ServerAddress
from trident_gateway.upstream.balancer import pick
from trident_gateway.upstream.catalogue import Catalogue
from trident_gateway.upstream.departures import CLOSE_TIMEOUT_S, Departures
from trident_gateway.upstream.health import Level
from trident_gateway.upstream.membership import Roster
from trident_gateway.upstream.served_model import ServedModel
from trident_gateway.upstream.server import Server
from trident_gateway.upstream.server_status import ServerStatus
from trident_gateway.upstream.sides import CANARY, SIDES, STABLE, position
from trident_gateway.upstream.watch_times import WatchTimes

_log = logging.getLogger(__name__)

#: Returns what a caller's place between the sides goes by; called only where there is a choice.
Identity = Callable[[], bytes]


class Fleet:
    """All servers, each watched by itself.

    Args:
        times: how they are watched.
        draw: where chance comes from.
    """

    def __init__(self, times: WatchTimes, draw: Random) -> None:
        self._times = times
        self._draw = draw
        self._catalogues = {side: Catalogue(side) for side in SIDES}
        self._news = asyncio.Event()
        self._servers: dict[str, Server] = {}
        self._places: dict[ServerAddress, str] = {}
        self._leave_at: dict[Server, float] = {}
        self._departures = Departures(self._forget)
        self._is_started = False
        #: Percent of callers whose requests go to the canary.
        self.canary_weight = 0.0
        #: Choices, by server, reason and side: `only`, `affinity`, `load`; `retry` where another was chosen before.
        self.picks: Counter[tuple[str, str, str]] = Counter()

    @property
    def is_ready(self) -> bool:
        """Whether there is a model, and a server that is ready for it, on a side that may have every call."""
        sides = SIDES if self.canary_weight >= 100 else (STABLE,)
        return any(self._level(side, name) is Level.READY for side in sides for name in self._catalogues[side].models)

    @property
    def conflicts(self) -> frozenset[str]:
        """Models on which servers of one side do not agree, so that only some of them serve it."""
        return frozenset[str]().union(*(catalogue.conflicts for catalogue in self._catalogues.values()))

    @property
    def fullness(self) -> float:
        """How much of what the servers in rotation have is taken, on the average, from 0 to 1.

        Those of a side without callers do not count, unless there are no others.
        """
        ready = [server for server in self._servers.values() if server.level is Level.READY]
        idle_side = {0.0: CANARY, 100.0: STABLE}.get(self.canary_weight)
        parts = [server.fullness for server in ready if server.side != idle_side] or [one.fullness for one in ready]
        return sum(parts) / len(parts) if parts else 0.0

    def models(self, identity: Identity) -> Mapping[str, ServedModel]:
        """Return all models that a caller may find, by their served names."""
        stable, canary = (self._catalogues[side].models for side in SIDES)
        if not self.canary_weight:
            return stable
        found = {name: self.find(name, identity) for name in sorted({*stable, *canary})}
        return {model.card.name: model for model in found.values() if model is not None}

    def find(self, name: str, identity: Identity) -> ServedModel | None:
        """Return the model of a served name or an alias, as the caller's side has it; None if there is none.

        A canary that is not ready has no callers, as long as the stable side can take them.
        """
        stable = self._catalogues[STABLE].find(name)
        weight = self.canary_weight
        canary = self._catalogues[CANARY].find(name) if weight else None
        if canary is None or (weight < 100 and position(identity()) >= weight):
            return stable
        if self._level(CANARY, canary.card.name) is Level.READY or not self._can_take(stable):
            return replace(canary, fallback=stable)
        return stable

    def instead_of(self, model: ServedModel) -> ServedModel | None:
        """Return what is served in the place of a model that was found before; None where nothing has changed.

        A request that was translated for the one may mean something else to the other.
        """
        now = self._catalogues[model.side].models.get(model.card.name)
        if now is None:
            return model.fallback
        return None if now.card.digest == model.card.digest else replace(now, fallback=model.fallback)

    def fallback_of(self, model: ServedModel) -> ServedModel | None:
        """Return the stable side's model that takes what the canary cannot; None where it can take nothing either."""
        return model.fallback if self._can_take(model.fallback) else None

    def status(self) -> list[ServerStatus]:
        """Return the state of each server, those among them that only end what they have."""
        leaving = self._departures.servers
        servers = {server.name: server for server in (*leaving, *self._servers.values())}
        return [
            ServerStatus(
                server.name,
                server.level is Level.READY and server not in leaving,
                server.num_in_flight,
                server.health.num_ejections,
                server.is_awaited,
                server.num_steps,
                server.side,
                server.is_well and server not in leaving,
            )
            for server in servers.values()
        ]

    async def start(self) -> None:
        """Look at all servers once and begin to watch them; returns also when none of them answers."""
        await asyncio.gather(*(server.look() for server in self._servers.values()))
        self._is_started = True
        for server in self._servers.values():
            server.start()

    async def close(self) -> None:
        """Stop watching, and close all connections when calls that are being ended have ended."""
        closing = (server.close(CLOSE_TIMEOUT_S) for server in self._servers.values())
        await asyncio.gather(self._departures.close(), *closing)

    def assign(self, roster: Roster) -> None:
        """Put servers on their sides: new ones are watched from now on, those that have no place end what they have.

        While none of those that take their side has said what it serves, they get calls as before, for a time.
        """
        self._places = {address: side for side in SIDES for address in getattr(roster, side)}
        names = {address.name for address in self._places}
        now = asyncio.get_running_loop().time()
        for server in self._servers.values():
            if server.address in self._places:
                self._leave_at.pop(server, None)
            elif server.name in names:  # it cannot stay beside another of its name
                self._leave_at[server] = now
            else:
                self._leave_at.setdefault(server, now + self._times.handover_s)
        self._hand_over()
        known = {server.address: server for server in self._servers.values()}
        for address, side in self._places.items():
            self._place(known.get(address) or self._take_back(address) or self._add(address), side)
        self.canary_weight = roster.weight
        self._news_of_servers()

    def pick(self, model: ServedModel, affinity: bytes, tried: Collection[str]) -> tuple[Server, ServedModel] | None:
        """Return a server that was not tried, of the best kind that there is, and the model as it has it.

        Returns None if all that were not tried are down; for the canary, also if none is ready and the stable side can
        take the call.
        """
        catalogue, name = self._catalogues[model.side], model.card.name
        servers = [self._servers[server] for server in catalogue.servers(name)]
        levels = {server.name: server.level for server in servers if server.name not in tried}
        best = max(levels.values(), default=Level.DOWN)
        if best is Level.DOWN or (best is Level.DOUBTFUL and self._can_take(model.fallback)):
            return None
        candidates = [
            server.candidate(catalogue.on_server(server.name, name))
            for server in servers
            if levels.get(server.name) is best
        ]
        choice = pick(candidates, affinity, self._draw)
        self.picks[choice.name, "retry" if tried else choice.reason, model.side] += 1
        return self._servers[choice.name], catalogue.on_server(choice.name, name)

    def may_have(self, model: ServedModel) -> bool:
        """Return whether a server of its side serves a model, be it down at present, or has not said yet its models."""
        is_open = any(server.side == model.side and not server.is_read for server in self._servers.values())
        return is_open or bool(self._catalogues[model.side].servers(model.card.name))

    async def wait_for_news(self, until: float) -> None:
        """Wait until some server has been looked at again, or until a time of the event loop."""
        timer = asyncio.get_running_loop().call_at(until, self._tell_news)
        try:
            await self._news.wait()
        finally:
            timer.cancel()

    def _can_take(self, model: ServedModel | None) -> bool:
        return model is not None and self._level(model.side, model.card.name) is not Level.DOWN

    def _level(self, side: str, name: str) -> Level:
        servers = self._catalogues[side].servers(name)
        return max((self._servers[server].level for server in servers), default=Level.DOWN)

    def _add(self, address: ServerAddress) -> Server:
        server = Server(address, self._times, self._models_read, self._news_of_servers)
        self._servers[server.name] = server
        if self._is_started:
            server.start()
        return server

    def _place(self, server: Server, side: str) -> None:
        if server.side != side:
            self._catalogues[server.side].remove(server.name)
            server.side = side
            self._models_read(server)

    def _hand_over(self) -> None:
        """See those off that have no place any more, where another has taken it, or will not soon."""
        now = asyncio.get_running_loop().time()
        for server, leave_at in list(self._leave_at.items()):
            side = [one for one in self._servers.values() if self._places.get(one.address) == server.side]
            is_to_come = server.side in self._places.values() and not any(one.models for one in side)
            if now >= leave_at or not is_to_come:
                self._see_off(server)

    def _see_off(self, server: Server) -> None:
        """Send a server no more calls, and let go of it when it has ended those that it has."""
        del self._leave_at[server]
        del self._servers[server.name]
        self._catalogues[server.side].remove(server.name)
        self._departures.add(server)

    def _forget(self, server: Server) -> None:
        if server.name not in self._servers:  # its name would stay on the page of metrics for ever
            for key in [key for key in self.picks if key[0] == server.name]:
                del self.picks[key]

    def _take_back(self, address: ServerAddress) -> Server | None:
        """Return the server of an address that was about to leave."""
        server = self._departures.take_back(address)
        if server is not None:
            self._servers[server.name] = server
            self._models_read(server)
        return server

    def _news_of_servers(self) -> None:
        self._hand_over()
        self._tell_news()

    def _tell_news(self) -> None:
        news, self._news = self._news, asyncio.Event()
        news.set()

    def _models_read(self, server: Server) -> None:
        self._hand_over()  # before those that leave could be in conflict with those that come
        if self._servers.get(server.name) is not server:
            return
        catalogue = self._catalogues[server.side]
        before = catalogue.conflicts
        if catalogue.update(server.name, server.models):
            names = ", ".join(sorted(model.card.name for model in server.models)) or "nothing"
            _log.info("%s server %s serves %s", server.side, server.name, names)
        for name in catalogue.conflicts - before:
            _log.warning("servers do not agree on model %s: only %s serve it", name, catalogue.servers(name))
