"""The way of a call to a server that can take it.

Owns the servers and what is known of them, and the rules by which a call that has had no byte is tried again. Never
looks into an answer.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random
from urllib.parse import quote

from trident_gateway.errors import (
    ApiError,
    DeadlineError,
    EngineFaultError,
    ModelNotFoundError,
    NoUpstreamError,
    UpstreamLostError,
)
from trident_gateway.settings import ServerAddress
from trident_gateway.upstream.balancer import pick
from trident_gateway.upstream.catalogue import Catalogue
from trident_gateway.upstream.connection import ConnectionLostError
from trident_gateway.upstream.exchange import Exchange
from trident_gateway.upstream.health import Level
from trident_gateway.upstream.http_client import BodyTooLargeError, ConnectError
from trident_gateway.upstream.refusals import RefusedError, api_error, read_refusal
from trident_gateway.upstream.served_model import GenerateCall, ServedModel
from trident_gateway.upstream.server import Server, WatchTimes

#: How many servers one call may lose before it has had a byte: it could be the call that kills them.
MAX_LOSSES = 2
_MAX_JSON_BYTES = 64 << 20
_JSON_TIMEOUT_S = 60.0
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
    """

    server: str
    is_ready: bool
    num_in_flight: int
    num_ejections: int


class Router:
    """All servers behind the gateway.

    Args:
        addresses: the servers.
        patience_s: how long a call waits for a server to come back, if its own deadline is not sooner.
        times: how servers are watched.
        draw: where chance comes from.
    """

    def __init__(
        self,
        addresses: Sequence[ServerAddress],
        *,
        patience_s: float = 30.0,
        times: WatchTimes | None = None,
        draw: Random | None = None,
    ) -> None:
        self._times = times or WatchTimes()
        self._draw = draw or Random()  # noqa: S311 (it balances)
        self._patience_s = patience_s
        self._catalogue = Catalogue()
        self._news = asyncio.Event()
        servers = [Server(address, self._times, self._models_read, self._tell_news) for address in addresses]
        self._servers = {server.name: server for server in servers}
        self._watches: list[asyncio.Task[None]] = []
        #: Calls sent, by server and reason: `only`, `affinity`, `load`; `retry` where another server was tried before.
        self.picks: Counter[tuple[str, str]] = Counter()
        #: Calls that were tried again, by reason: `refused`, `lost`, `unavailable`, `missing`.
        self.retries: Counter[str] = Counter()

    @property
    def is_ready(self) -> bool:
        """Whether there is a model and a server that is ready for it."""
        return any(self._level(name) is Level.READY for name in self._catalogue.models)

    @property
    def num_steps(self) -> float:
        """Steps that all engines have made, as far as they were last heard of: a change of it is progress."""
        return sum(server.num_steps for server in self._servers.values())

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
            ServerStatus(server.name, server.level is Level.READY, server.num_in_flight, server.health.num_ejections)
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

    async def open(self, call: GenerateCall) -> Exchange:
        """Return the exchange of a call whose first event has come.

        A call that has had no event is tried again elsewhere: where its server is down, has died or lacks the model,
        and once where its server takes nothing now. While no server is there it waits for one to come back.

        Raises:
            InvalidRequestError: the ensemble refuses the call (`UpstreamRefusalError`).
            UnavailableError: no server takes it now.
            DeadlineError: its deadline has passed.
            EngineFaultError: a server has failed.
        """
        wait_until = asyncio.get_running_loop().time() + self._patience_s
        tried: set[str] = set()
        num_losses = 0
        refusal: ApiError | None = None
        while True:
            self._check_deadline(call.deadline)
            server = self._pick(call, tried, is_retry=num_losses > 0 or bool(tried))
            if server is None:
                if refusal is not None:
                    raise refusal
                await self._wait_for_news(call.model, wait_until, call.deadline)
                tried.clear()
                continue
            tried.add(server.name)
            try:
                return await self._begin(server, call, is_retry=num_losses > 0)
            except ConnectError:
                self.retries["refused"] += 1
            except ConnectionLostError:
                num_losses += 1
                if num_losses == MAX_LOSSES:
                    raise UpstreamLostError from None
                self.retries["lost"] += 1
            except RefusedError as error:
                if error.is_model_missing:
                    self.retries["missing"] += 1
                elif error.is_elsewhere_welcome and refusal is None:
                    refusal = api_error(error.wire)
                    self.retries["unavailable"] += 1
                else:
                    raise api_error(error.wire) from None

    async def call_json(
        self, model: ServedModel, path_suffix: str, body: bytes, *, deadline: float | None = None
    ) -> bytes:
        """Return the JSON answer of a model that belongs to a served model.

        Args:
            model: the served model.
            path_suffix: what follows `/v2/models/`, such as `preprocessing/generate`.
            body: JSON.
            deadline: in the time of the event loop; None for a minute from now.

        Raises:
            InvalidRequestError: the model refuses the call (`UpstreamRefusalError`).
            UnavailableError: no server takes it.
            DeadlineError: its deadline has passed.
            EngineFaultError: a server has failed.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _JSON_TIMEOUT_S if deadline is None else deadline
        wait_until = loop.time() + self._patience_s
        tried: set[str] = set()
        call = GenerateCall(model, b"{}", "", "", streaming=False)
        while True:
            self._check_deadline(deadline)
            server = self._pick(call, tried, is_retry=bool(tried))
            if server is None:
                await self._wait_for_news(model, wait_until, deadline)
                tried.clear()
                continue
            tried.add(server.name)
            try:
                status, answer = await server.post(
                    f"/v2/models/{quote(path_suffix)}",
                    body,
                    max_bytes=_MAX_JSON_BYTES,
                    timeout_s=deadline - loop.time(),
                )
            except asyncio.TimeoutError:
                raise DeadlineError from None
            except BodyTooLargeError:
                raise EngineFaultError from None
            except (ConnectError, ConnectionLostError):
                server.call_failed()
                continue
            if status == 200:
                return answer
            raise api_error(RefusedError(status, read_refusal(answer)).wire)

    async def _begin(self, server: Server, call: GenerateCall, *, is_retry: bool) -> Exchange:
        model = self._catalogue.on_server(server.name, call.model.card.name)
        exchange = server.exchange(model, call, is_retry=is_retry)
        try:
            await exchange.begin()
        except BaseException as error:
            await exchange.close()
            if isinstance(error, (ConnectError, ConnectionLostError)):
                server.call_failed()
            raise
        server.health.call_answered()
        return exchange

    def _pick(self, call: GenerateCall, tried: set[str], *, is_retry: bool) -> Server | None:
        """Return a server that was not tried, of the best kind that there is; None if all of them are down."""
        name = call.model.card.name
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
        choice = pick(candidates, call.affinity, self._draw)
        self.picks[choice.name, "retry" if is_retry else choice.reason] += 1
        return self._servers[choice.name]

    def _level(self, name: str) -> Level:
        return max((self._servers[server].level for server in self._catalogue.servers(name)), default=Level.DOWN)

    async def _wait_for_news(self, model: ServedModel, wait_until: float, deadline: float | None) -> None:
        if not self._catalogue.servers(model.card.name):
            raise ModelNotFoundError(model.card.name)
        loop = asyncio.get_running_loop()
        until = wait_until if deadline is None else min(wait_until, deadline)
        timer = loop.call_at(until, self._tell_news)
        try:
            await self._news.wait()
        finally:
            timer.cancel()
        self._check_deadline(deadline)
        if loop.time() >= wait_until:
            raise NoUpstreamError

    @staticmethod
    def _check_deadline(deadline: float | None) -> None:
        if deadline is not None and asyncio.get_running_loop().time() >= deadline:
            raise DeadlineError

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
