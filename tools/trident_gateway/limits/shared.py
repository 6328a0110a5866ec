"""A shared store that may go away, and come back.

Owns which store counts at the moment: the shared one, or, while it is gone, this process with its share of each limit.
Never lets a request wait for a store that is known to be gone.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING

from trident_gateway.limits.memory import MemoryStore
from trident_gateway.limits.standing import Demand
from trident_gateway.limits.store import Hold, Outcome, StoreLostError

if TYPE_CHECKING:
    from trident_gateway.limits.redis import RedisStore  # which imports the package `redis`

_log = logging.getLogger(__name__)

#: Settlements that are kept for a store that is gone; of more than these, the oldest are lost.
_MAX_LATE = 100_000


class SharedStore:
    """Counts in the shared store, and here while that is gone.

    Args:
        shared: the store of all gateways.
        num_replicas: gateways that share it; while it is gone, each gives out that part of a limit.
        fails_open: go on while it is gone; otherwise requests are refused.
        retry_s: between attempts to reach a store that is gone.
        local: counts while it is gone.
    """

    def __init__(
        self,
        shared: RedisStore,
        *,
        num_replicas: int,
        fails_open: bool,
        retry_s: float = 0.5,
        local: MemoryStore | None = None,
    ) -> None:
        self._shared = shared
        self._local = local or MemoryStore()
        self._num_replicas = num_replicas
        self._fails_open = fails_open
        self._retry_s = retry_s
        self._here: dict[str, Demand] = {}
        self._late: deque[tuple[Hold, Demand, int]] = deque(maxlen=_MAX_LATE)
        self._uncharged: deque[tuple[Hold, Demand, int]] = deque(maxlen=_MAX_LATE)
        self._is_gone = asyncio.Event()
        self._watch: asyncio.Task[None] | None = None
        self.num_losses = 0

    @property
    def is_up(self) -> bool:
        """Whether the shared store counts."""
        return not self._is_gone.is_set()

    async def take(self, hold: Hold, demand: Demand) -> Outcome:
        """Take everything that a request demands, or nothing.

        Raises:
            StoreLostError: the shared store is gone, and this gateway refuses then.
        """
        if self.is_up:
            try:
                return await self._shared.take(hold, demand)
            except StoreLostError:
                self._note_loss()
        if not self._fails_open:
            raise StoreLostError
        outcome = await self._local.take(self._part(hold), demand)
        if outcome.is_taken:
            self._here[hold.lease] = demand
        return outcome

    async def adjust(self, hold: Hold, more: Demand, *, taken_at_ms: int, is_last: bool) -> None:
        """Take more, or give back, where it was taken.

        The last one of a request is kept for a shared store that is gone.
        """
        if (held := self._here.get(hold.lease)) is not None:
            used = Demand(held.input_tokens + more.input_tokens, held.output_tokens + more.output_tokens)
            self._here[hold.lease] = used
            await self._local.adjust(self._part(hold), more, taken_at_ms=taken_at_ms, is_last=is_last)
            if is_last:
                del self._here[hold.lease]
                await self._charge(hold, used, taken_at_ms)
            return
        if self.is_up:
            try:
                await self._shared.adjust(hold, more, taken_at_ms=taken_at_ms, is_last=is_last)
            except StoreLostError:
                self._note_loss()
            else:
                return
        if not is_last:
            raise StoreLostError
        self._shared.forget(hold)
        self._late.append((hold, more, taken_at_ms))

    async def _charge(self, hold: Hold, used: Demand, taken_at_ms: int) -> None:
        """Count to the shared quotas what was used here; later, if the shared store is still gone."""
        if hold.limits.tokens_per_day is None and hold.limits.tokens_per_month is None:
            return
        if self.is_up:
            try:
                await self._shared.charge(hold, used, taken_at_ms=taken_at_ms)
            except StoreLostError:
                self._note_loss()
            return
        self._uncharged.append((hold, used, taken_at_ms))

    async def start(self) -> None:
        """Begin to watch the shared store."""
        await self._shared.start()
        self._watch = asyncio.create_task(self._bring_back())

    async def close(self) -> None:
        """Stop watching, and close the connections."""
        if self._watch is not None:
            self._watch.cancel()
            with suppress(asyncio.CancelledError):
                await self._watch
        await self._shared.close()

    def _note_loss(self) -> None:
        if self.is_up:
            self.num_losses += 1
            self._is_gone.set()
            _log.warning(
                "The store of limits does not answer: %s.",
                "each gateway gives out its share" if self._fails_open else "requests are refused",
            )

    def _part(self, hold: Hold) -> Hold:
        return Hold(hold.account, hold.limits.share(self._num_replicas), hold.lease)

    async def _bring_back(self) -> None:
        while True:
            await self._is_gone.wait()
            try:
                await self._shared.renew(also_lost=True)
                while self._late:
                    hold, more, taken_at_ms = self._late[0]
                    await self._shared.adjust(hold, more, taken_at_ms=taken_at_ms, is_last=True)
                    self._late.popleft()
                await self._shared.ping()
                while self._uncharged:
                    # Once at most: what may have been counted is not counted again.
                    hold, more, taken_at_ms = self._uncharged.popleft()
                    await self._shared.charge(hold, more, taken_at_ms=taken_at_ms)
            except StoreLostError:
                await asyncio.sleep(self._retry_s)
                continue
            self._is_gone.clear()
            _log.warning("The store of limits answers again.")
