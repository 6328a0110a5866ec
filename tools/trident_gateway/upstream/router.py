"""The way of a call to a server that can take it.

Owns the rules by which a call that has had no byte is tried again. Never looks into an answer.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from random import Random
from typing import TypeVar
from urllib.parse import quote

from trident_gateway.errors import (
    ApiError,
    DeadlineError,
    EngineFaultError,
    ModelNotFoundError,
    NoUpstreamError,
    UpstreamLostError,
)
from trident_gateway.settings import ServerAddress, ServerName
from trident_gateway.upstream.connection import BodyTooLargeError, ConnectError, ConnectionLostError
from trident_gateway.upstream.dns import Resolve, resolve
from trident_gateway.upstream.exchange import Exchange
from trident_gateway.upstream.fleet import Fleet, Identity
from trident_gateway.upstream.membership import Membership
from trident_gateway.upstream.refusals import RefusedError, api_error, read_refusal
from trident_gateway.upstream.served_model import GenerateCall, ReplanError, ServedModel
from trident_gateway.upstream.server import Server
from trident_gateway.upstream.server_status import ServerStatus
from trident_gateway.upstream.sides import CANARY, STABLE
from trident_gateway.upstream.watch_times import WatchTimes

#: How many servers one call may lose before it has had a byte: it could be the call that kills them.
MAX_LOSSES = 2
_MAX_JSON_BYTES = 64 << 20
_JSON_TIMEOUT_S = 60.0
Answer = TypeVar("Answer")
#: Makes a call at a server, to the model as it has it; told whether it was sent to another before.
Attempt = Callable[[Server, ServedModel, bool], Awaitable[Answer]]


class Router:
    """The calls to all servers behind the gateway.

    Args:
        addresses: the servers of the stable side.
        server_dns: a name whose addresses are further ones; None for none.
        routes_file: may name others in their place, and a canary; None for no such file.
        resolve: looks names up.
        patience_s: how long a call waits for a server to come back, if its own deadline is not sooner.
        times: how servers are watched.
        draw: where chance comes from.

    Raises:
        ConfigError: the routes file cannot be read or understood.
    """

    def __init__(
        self,
        addresses: Sequence[ServerAddress],
        *,
        server_dns: ServerName | None = None,
        routes_file: Path | None = None,
        resolve: Resolve = resolve,
        patience_s: float = 30.0,
        times: WatchTimes | None = None,
        draw: Random | None = None,
    ) -> None:
        self._patience_s = patience_s
        times = times or WatchTimes()
        self._fleet = Fleet(times, draw or Random())  # noqa: S311 (it balances)
        #: What says which servers there are.
        self.membership = Membership(
            addresses,
            server_dns=server_dns,
            routes_file=routes_file,
            on_change=self._fleet.assign,
            resolve=resolve,
            times=times,
        )
        #: Calls sent, by server, reason and side: `only`, `affinity`, `load`; `retry` where another was tried before.
        self.picks = self._fleet.picks
        #: Calls that were tried again, by reason: `refused`, `lost`, `unavailable`, `missing`; `canary` where the
        #: stable side takes what the canary cannot, `changed` where the model is another by now.
        self.retries: Counter[str] = Counter()

    @property
    def is_ready(self) -> bool:
        """Whether there is a model and a server that is ready for it."""
        return self._fleet.is_ready

    @property
    def conflicts(self) -> frozenset[str]:
        """Models on which servers do not agree, so that only some of them serve it."""
        return self._fleet.conflicts

    @property
    def fullness(self) -> float:
        """How much of what the servers in rotation have is taken, from 0 to 1."""
        return self._fleet.fullness

    @property
    def weights(self) -> dict[str, float]:
        """Percent of callers that each side has."""
        return {STABLE: 100.0 - self._fleet.canary_weight, CANARY: self._fleet.canary_weight}

    def models(self, identity: Identity = bytes) -> Mapping[str, ServedModel]:
        """Return all models that a caller may find, by their served names."""
        return self._fleet.models(identity)

    def find(self, name: str, identity: Identity = bytes) -> ServedModel | None:
        """Return the model of a served name or an alias, on the side of the caller; None if there is none.

        Args:
            name: the name.
            identity: returns the caller's key id, or what the requests of a conversation have in common.
        """
        return self._fleet.find(name, identity)

    def status(self) -> list[ServerStatus]:
        """Return the state of each server."""
        return self._fleet.status()

    async def start(self) -> None:
        """Look at all servers once and begin to watch them; returns also when none of them answers."""
        await self.membership.start()
        await self._fleet.start()

    async def close(self) -> None:
        """Stop watching, and close all connections when calls that are being ended have ended."""
        await self.membership.close()
        await self._fleet.close()

    async def open(self, call: GenerateCall) -> Exchange:
        """Return the exchange of a call whose first event has come.

        A call that has had no event is tried again elsewhere: where its server is down, has died or lacks the model,
        and once where its server takes nothing now. While no server is there it waits for one to come back. What the
        canary cannot take is the stable side's, if that can take it.

        Raises:
            ReplanError: it must be put together anew.
            InvalidRequestError: the ensemble refuses the call (`UpstreamRefusalError`).
            UnavailableError: no server takes it now.
            DeadlineError: its deadline has passed.
            EngineFaultError: a server has failed.
        """

        async def attempt(server: Server, model: ServedModel, is_repeated: bool) -> Exchange:
            exchange = server.exchange(model, call, is_retry=is_repeated)
            try:
                await exchange.begin()
            except BaseException:
                await exchange.close()
                raise
            return exchange

        return await self._try(call.model, call.affinity, call.deadline, attempt)

    async def call_json(
        self, model: ServedModel, path_suffix: str, body: bytes, *, deadline: float | None = None
    ) -> bytes:
        """Return the JSON answer of a model that belongs to a served model.

        Args:
            model: the served model.
            path_suffix: what follows `/v2/models/`, such as `preprocessing/generate`. Where it begins with the name
                of the model's preprocessing, each server is asked by the name that it has there.
            body: JSON.
            deadline: in the time of the event loop; None for a minute from now.

        Raises:
            ReplanError: it must be put together anew.
            InvalidRequestError: the model refuses the call (`UpstreamRefusalError`).
            UnavailableError: no server takes it.
            DeadlineError: its deadline has passed.
            EngineFaultError: a server has failed.
        """
        loop = asyncio.get_running_loop()
        until = loop.time() + _JSON_TIMEOUT_S if deadline is None else deadline
        name, _, verb = path_suffix.partition("/")

        async def attempt(server: Server, there: ServedModel, _: bool) -> bytes:
            path = f"/v2/models/{quote(there.preprocessing if name == model.preprocessing else name)}/{verb}"
            try:
                status, answer = await server.post(path, body, max_bytes=_MAX_JSON_BYTES, timeout_s=until - loop.time())
            except asyncio.TimeoutError:
                raise DeadlineError from None
            except BodyTooLargeError:
                raise EngineFaultError from None
            if status != 200:
                raise RefusedError(status, read_refusal(answer))
            return answer

        return await self._try(model, b"", until, attempt)

    async def _try(
        self, model: ServedModel, affinity: bytes, deadline: float | None, attempt: Attempt[Answer]
    ) -> Answer:
        wait_until = asyncio.get_running_loop().time() + self._patience_s
        tried: set[str] = set()
        num_losses = 0
        refusal: ApiError | None = None
        while True:
            _check_deadline(deadline)
            self._check_model(model)
            choice = self._fleet.pick(model, affinity, tried)
            if choice is None:
                self._fall_back(model)
                if refusal is not None:
                    raise refusal
                await self._wait(model, wait_until, deadline)
                tried.clear()
                continue
            server, as_there = choice
            tried.add(server.name)
            try:
                answer = await attempt(server, as_there, num_losses > 0)
            except ConnectError:
                server.call_failed()
                self.retries["refused"] += 1
            except ConnectionLostError:
                server.call_failed()
                num_losses += 1
                if num_losses == MAX_LOSSES:
                    self._fall_back(model)
                    raise UpstreamLostError from None
                self.retries["lost"] += 1
            except RefusedError as error:
                if error.is_model_missing:
                    self.retries["missing"] += 1
                elif error.is_elsewhere_welcome and refusal is None:
                    refusal = api_error(error.wire)
                    self.retries["unavailable"] += 1
                else:
                    if error.is_elsewhere_welcome:
                        self._fall_back(model)
                    raise api_error(error.wire) from None
            else:
                server.health.call_answered()
                return answer

    def _check_model(self, model: ServedModel) -> None:
        """Refuse a call that was put together for a model that has been replaced since."""
        other = self._fleet.instead_of(model)
        if other is not None:
            self.retries["changed"] += 1
            raise ReplanError(other)

    def _fall_back(self, model: ServedModel) -> None:
        """Give what the canary cannot take to the stable side, if that can take it."""
        other = self._fleet.fallback_of(model)
        if other is not None:
            self.retries["canary"] += 1
            raise ReplanError(other, is_fallback=True) from None

    async def _wait(self, model: ServedModel, wait_until: float, deadline: float | None) -> None:
        """Wait for news of the servers, as long as that makes sense."""
        if not self._fleet.may_have(model):
            raise ModelNotFoundError(model.card.name)
        await self._fleet.wait_for_news(wait_until if deadline is None else min(wait_until, deadline))
        _check_deadline(deadline)
        if asyncio.get_running_loop().time() >= wait_until:
            raise NoUpstreamError


def _check_deadline(deadline: float | None) -> None:
    if deadline is not None and asyncio.get_running_loop().time() >= deadline:
        raise DeadlineError
