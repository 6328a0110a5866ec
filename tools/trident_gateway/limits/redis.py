"""Limits that several gateways share, in a Redis or Valkey.

Owns the connections, and the leases by which the store knows which requests still run. Never retries a call, for a call
without an answer may have been carried out; and never shows the store's address, in which a password may stand.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any, cast

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from trident_ensemble.contract.errors import ConfigError
from trident_gateway.limits.script import LIMITS_SCRIPT
from trident_gateway.limits.standing import Demand, Standing
from trident_gateway.limits.store import Hold, Outcome, StoreLostError

_MAX_CONNECTIONS = 32


class RedisStore:
    """Counts in a Redis or Valkey, by one call of one script.

    Args:
        url: of the server, as redis-py reads it: `redis://`, `rediss://` or `unix://`.
        lease_ms: how long a request that no gateway prolongs still counts.
        timeout_s: for the server to answer, before it counts as lost.
        clock_ms: tells the time; None for the server's own clock, which is the one that all gateways share.

    Raises:
        ConfigError: the URL cannot be understood.
    """

    def __init__(
        self, url: str, *, lease_ms: int = 30_000, timeout_s: float = 1.0, clock_ms: Callable[[], int] | None = None
    ) -> None:
        try:
            pool = BlockingConnectionPool.from_url(
                url,
                max_connections=_MAX_CONNECTIONS,
                timeout=timeout_s,
                socket_timeout=timeout_s,
                socket_connect_timeout=timeout_s,
                retry=Retry(NoBackoff(), 0),
            )
        except ValueError:
            raise ConfigError("--limits-store: is no URL that begins with redis://, rediss:// or unix://") from None
        self._redis: Redis = Redis.from_pool(pool)
        self._script = self._redis.register_script(LIMITS_SCRIPT)
        self._lease_ms = lease_ms
        self._clock_ms = clock_ms
        self._leases: defaultdict[str, set[str]] = defaultdict(set)
        self._heart: asyncio.Task[None] | None = None

    async def take(self, hold: Hold, demand: Demand) -> Outcome:
        """Take everything that a request demands, or nothing."""
        arguments: list[str | int] = [hold.lease, *_limits(hold), demand.input_tokens, demand.output_tokens]
        is_taken, *standing = await self._call("take", hold.account, arguments)
        if is_taken:
            self._leases[hold.account].add(hold.lease)
        return Outcome(is_taken=is_taken == 1, standing=Standing(*standing), limits=hold.limits)

    async def adjust(self, hold: Hold, more: Demand, *, taken_at_ms: int, is_last: bool) -> None:
        """Take more, or give back; nothing, if the request holds nothing any longer."""
        if is_last:
            self.forget(hold)
        arguments: list[str | int] = [
            hold.lease,
            *_limits(hold),
            more.input_tokens,
            more.output_tokens,
            taken_at_ms,
            int(is_last),
        ]
        await self._call("adjust", hold.account, arguments)

    async def charge(self, hold: Hold, used: Demand, *, taken_at_ms: int) -> None:
        """Count to the quotas of an account what was used while the store was gone.

        Raises:
            StoreLostError: the store does not answer.
        """
        arguments: list[str | int] = [hold.lease, *_limits(hold), used.input_tokens, used.output_tokens, taken_at_ms, 0]
        await self._call("charge", hold.account, arguments)

    def forget(self, hold: Hold) -> None:
        """Prolong the lease of a request no longer."""
        leases = self._leases.get(hold.account, set())
        leases.discard(hold.lease)
        if not leases:
            self._leases.pop(hold.account, None)

    async def renew(self, *, also_lost: bool) -> None:
        """Prolong the leases of all requests that run.

        Args:
            also_lost: make those anew that have ended in the store.

        Raises:
            StoreLostError: the store does not answer.
        """
        for account, leases in [(account, tuple(leases)) for account, leases in self._leases.items()]:
            await self._call("renew", account, ["" if also_lost else "XX", *leases])

    async def ping(self) -> None:
        """Ask the store for a sign of life.

        Raises:
            StoreLostError: there is none.
        """
        try:
            await _answer(self._redis.ping())
        except (RedisError, OSError, asyncio.TimeoutError):
            raise StoreLostError from None

    async def start(self) -> None:
        """Begin to prolong leases."""
        self._heart = asyncio.create_task(self._beat())

    async def close(self) -> None:
        """Stop prolonging leases, and close the connections."""
        if self._heart is not None:
            self._heart.cancel()
            with suppress(asyncio.CancelledError):
                await self._heart
        await self._redis.aclose()

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(self._lease_ms / 3000)
            # A store that is gone is noticed by the next request, and what it held is told to it when it is back.
            with suppress(StoreLostError):
                await self.renew(also_lost=False)

    async def _call(self, operation: str, account: str, arguments: Sequence[str | int]) -> list[int]:
        now = "" if self._clock_ms is None else self._clock_ms()
        # The braces put both keys on one node of a cluster.
        keys = [f"trident:{{{account}}}:account", f"trident:{{{account}}}:leases"]
        try:
            answer: Any = await _answer(self._script(keys=keys, args=[operation, now, self._lease_ms, *arguments]))
        except (RedisError, OSError, asyncio.TimeoutError):
            raise StoreLostError from None
        return cast("list[int]", answer)


async def _answer(call: Awaitable[Any]) -> Any:
    """Return what a call of the client returns, and end at once where the caller is cancelled.

    The client calls `asyncio.wait_for`, which before Python 3.12 may swallow that its caller is cancelled; a task that
    goes round for ever would then do so also after its end.
    """
    task = asyncio.ensure_future(call)
    try:
        await asyncio.wait({task})
    finally:
        if not task.done():
            task.add_done_callback(_forget)
            task.cancel()
    return task.result()


def _forget(abandoned: asyncio.Task[Any]) -> None:
    """Take note of a failure that nobody asks for."""
    if not abandoned.cancelled():
        abandoned.exception()


def _limits(hold: Hold) -> tuple[int, ...]:
    limits = hold.limits
    return (
        limits.requests_per_minute or 0,
        limits.input_tokens_per_minute or 0,
        limits.output_tokens_per_minute or 0,
        limits.concurrency or 0,
        limits.tokens_per_day or 0,
        limits.tokens_per_month or 0,
    )
