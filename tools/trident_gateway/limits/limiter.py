"""What a caller may use: reserved before a call, settled after it.

Owns that whatever was taken is given back on every way out of a request. Never counts anything: a store does.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import Counter
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any

from trident_gateway.callers import Caller
from trident_gateway.errors import ApiError, UnavailableError
from trident_gateway.limits.memory import MemoryStore
from trident_gateway.limits.replies import limit_headers, shortage_error, too_large_error
from trident_gateway.limits.shared import SharedStore
from trident_gateway.limits.standing import Demand, shortage, too_large
from trident_gateway.limits.store import Hold, LimitStore, Outcome, StoreLostError
from trident_gateway.settings import GatewaySettings

_CLOSE_TIMEOUT_S = 5.0


class Limiter:
    """Holds callers to their limits.

    Args:
        store: counts.
    """

    def __init__(self, store: LimitStore) -> None:
        self._store = store
        self._tasks: set[asyncio.Task[Any]] = set()
        self.num_held = 0
        self.num_refused: Counter[str] = Counter()

    @classmethod
    def of(cls, settings: GatewaySettings) -> Limiter:
        """Return the one that a gateway's settings ask for; nothing is connected yet.

        Raises:
            ConfigError: the store's URL cannot be understood.
        """
        if settings.limits_store is None:
            return cls(MemoryStore())
        # The package costs time and memory, which only those pay who ask for a store.
        from trident_gateway.limits.redis import RedisStore  # noqa: PLC0415

        shared = RedisStore(settings.limits_store)
        return cls(SharedStore(shared, num_replicas=settings.num_replicas, fails_open=settings.limits_fail_open))

    @property
    def num_store_losses(self) -> int:
        """How often the shared store was lost; 0 where there is none."""
        return self._store.num_losses if isinstance(self._store, SharedStore) else 0

    @property
    def is_store_up(self) -> bool:
        """Whether the shared store counts; True where there is none."""
        return self._store.is_up if isinstance(self._store, SharedStore) else True

    async def start(self) -> None:
        """Begin to keep reservations alive and to watch the store; returns at once."""
        await self._store.start()

    async def close(self) -> None:
        """Wait for what is being settled, then let go of the store."""
        done = asyncio.ensure_future(self._all_done())
        try:
            # Not `asyncio.wait_for`: before Python 3.12 it may swallow that its caller is cancelled.
            await asyncio.wait({done}, timeout=_CLOSE_TIMEOUT_S)
        finally:
            done.cancel()
        await self._store.close()

    async def reserve(self, caller: Caller, input_tokens: int, output_tokens: int) -> Reservation:
        """Hold what a request may use.

        Args:
            caller: whose limits.
            input_tokens: of the prompt, or an estimate.
            output_tokens: that the request may have in all its answers.

        Raises:
            TooLargeForLimitError: it is larger than a limit.
            QuotaError: a quota is used up.
            RateLimitError: it comes too soon.
            UnavailableError: limits cannot be counted now, and the gateway is told to refuse then.
        """
        demand = Demand(input_tokens, min(output_tokens, caller.limits.output_reserve))
        hold = Hold(caller.account, caller.limits, secrets.token_hex(8))
        if not caller.limits.bounds_anything:
            return Reservation(self, None, hold, demand)
        if (found := too_large(caller.limits, demand)) is not None:
            self.num_refused[found.name] += 1
            raise too_large_error(found, demand)
        taking = self._run(self._store.take(hold, demand))
        try:
            outcome = await asyncio.shield(taking)
        except asyncio.CancelledError:
            taking.add_done_callback(lambda _: self._return_unclaimed(taking, hold, demand))
            raise
        except StoreLostError:
            raise UnavailableError(
                "The limits of this key cannot be checked at the moment. Try again later.", code="limits_unavailable"
            ) from None
        if not outcome.is_taken:
            raise self._refusal(outcome, demand)
        self.num_held += 1
        return Reservation(self, outcome, hold, demand)

    async def _all_done(self) -> None:
        # What was taken for a request that has left is settled by a task that begins when that one ends.
        while self._tasks:
            await asyncio.wait(self._tasks)

    def _refusal(self, outcome: Outcome, demand: Demand) -> ApiError:
        found = shortage(outcome.limits, outcome.standing, demand)
        assert found is not None, "a store refuses what its own standing allows"
        self.num_refused[found.name] += 1
        error = shortage_error(found)
        error.headers = (*error.headers, *limit_headers(outcome, demand))
        return error

    def _return_unclaimed(self, taking: asyncio.Task[Outcome], hold: Hold, demand: Demand) -> None:
        """Give back what was taken for a request that did not wait for it."""
        if taking.cancelled() or taking.exception() is not None or not taking.result().is_taken:
            return
        self.num_held += 1
        reservation = Reservation(self, taking.result(), hold, demand)
        self._run(reservation.settle(0, 0))

    def _run(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


class Reservation:
    """A part of its caller's limits, which one request holds until it is settled.

    Args:
        limiter: made it.
        outcome: of the attempt to take; None if nothing bounds the caller.
        hold: names it in the store.
        demand: that was taken.
    """

    def __init__(self, limiter: Limiter, outcome: Outcome | None, hold: Hold, demand: Demand) -> None:
        self._limiter = limiter
        self._outcome = outcome
        self._hold = hold
        self._demand = demand
        self._held = demand
        self._correction: asyncio.Task[None] | None = None
        self._is_settled = outcome is None

    def headers(self) -> list[tuple[bytes, bytes]]:
        """Return the headers that tell the caller what is left, as of the reservation."""
        return [] if self._outcome is None else limit_headers(self._outcome, self._demand)

    def correct_input(self, input_tokens: int) -> None:
        """Put the number of tokens that the prompt has in the place of the estimate; returns at once."""
        if self._is_settled or self._correction is not None or input_tokens == self._held.input_tokens:
            return
        self._correction = self._limiter._run(self._correct(input_tokens))

    async def settle(self, input_tokens: int | None, output_tokens: int) -> None:
        """Pay for what was used and give the rest back.

        Only the first call counts. It raises nothing of its own, and is carried to its end also where the caller is
        cancelled, so that it may stand in any `finally`.

        Args:
            input_tokens: of the prompt; None where that never became known, for what was last taken for it. 0 where
                the request did not reach a server.
            output_tokens: of all answers.
        """
        if self._is_settled:
            return
        self._is_settled = True
        await asyncio.shield(self._limiter._run(self._settle(input_tokens, output_tokens)))

    async def _correct(self, input_tokens: int) -> None:
        more = Demand(input_tokens - self._held.input_tokens, 0)
        # A store that is gone is told everything when the request is settled.
        with suppress(StoreLostError):
            await self._adjust(more, is_last=False)
            self._held = Demand(input_tokens, self._held.output_tokens)

    async def _settle(self, input_tokens: int | None, output_tokens: int) -> None:
        if self._correction is not None:
            await self._correction
        used = Demand(self._held.input_tokens if input_tokens is None else input_tokens, output_tokens)
        more = Demand(used.input_tokens - self._held.input_tokens, used.output_tokens - self._held.output_tokens)
        with suppress(StoreLostError):
            await self._adjust(more, is_last=True)
        self._limiter.num_held -= 1

    async def _adjust(self, more: Demand, *, is_last: bool) -> None:
        assert self._outcome is not None
        taken_at_ms = self._outcome.standing.now_ms
        await self._limiter._store.adjust(self._hold, more, taken_at_ms=taken_at_ms, is_last=is_last)
