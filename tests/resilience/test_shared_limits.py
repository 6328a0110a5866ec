"""One limit held by two gateways with a real Redis, which goes away and comes back."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

from tests.fakes.triton_http import FakeTriton
from tests.gateway.http.room import run
from tests.gateway.limits.redis_servers import RedisServer
from tests.gateway.process import GatewayProcess, completion
from tests.resilience.metrics import metric
from trident_tools import main

LIMIT = 60


def make_key(path: Path, capsys: object, tenant: str) -> dict[str, str]:
    """Make a key of 60 requests a minute; return the header that shows it."""
    assert main.main(["keys", "create", "--keys", str(path), "--tenant", tenant, "--rpm", str(LIMIT)]) == 0
    secret = next(word for word in capsys.readouterr().out.split() if word.startswith("sk-"))  # type: ignore[attr-defined]
    return {"authorization": f"Bearer {secret}"}


def test_shared_limits_hold_for_two_gateways_and_each_has_its_share_while_redis_is_gone(
    tmp_path: Path, capsys: object
) -> None:
    path = tmp_path / "keys.json"
    first, second, third = (make_key(path, capsys, name) for name in ("one", "two", "three"))

    async def test(redis: RedisServer) -> None:
        options = ("--keys", str(path), "--limits-store", redis.url, "--replicas", "2", "--drain-delay", "0")
        async with (
            FakeTriton() as fake,
            GatewayProcess(fake, options=options) as one,
            GatewayProcess(fake, options=options) as other,
        ):
            gateways = (one, other)

            async def ask(number: int, key: dict[str, str]) -> int:
                return (await gateways[number % 2].ask("/v1/completions", completion(max_tokens=1), key)).status

            async def ask_often(key: dict[str, str]) -> tuple[Counter[int], float]:
                began = asyncio.get_running_loop().time()
                statuses = Counter(await asyncio.gather(*(ask(number, key) for number in range(2 * LIMIT))))
                return statuses, asyncio.get_running_loop().time() - began

            statuses, seconds = await ask_often(first)
            assert set(statuses) == {200, 429}
            # The bucket, one more at most, and what has flowed into it meanwhile: one a second.
            assert LIMIT <= statuses[200] <= LIMIT + 1 + seconds

            redis.kill()
            statuses, seconds = await ask_often(second)
            assert set(statuses) == {200, 429}, "none of it is a fault of the gateway"
            # Each gateway gives out half of the limit.
            assert LIMIT <= statuses[200] <= LIMIT + 2 + seconds
            for gateway in gateways:
                assert await metric(gateway, "limits_store_up") == 0
                assert await metric(gateway, "limits_store_losses_total") == 1

            redis.start()
            for gateway in gateways:
                while not await metric(gateway, "limits_store_up"):
                    await asyncio.sleep(0.05)
            statuses, seconds = await ask_often(third)
            assert LIMIT <= statuses[200] <= LIMIT + 1 + seconds
            for gateway in gateways:
                said = [line for line in gateway.errors.decode().splitlines() if "store of limits" in line]
                assert len(said) == 2, "one line when it goes and one when it is back"
                assert redis.url not in gateway.errors.decode()

    with RedisServer() as redis:
        run(lambda: test(redis))
