"""A thousand clients that leave, at any moment, leave nothing behind."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from random import Random
from typing import Any

import pytest

from tests.fakes.triton_http import FakeTriton, Script, tokens
from tests.gateway.upstream.driver import make_call, read_out, routing, run, until
from trident_gateway.upstream.router import Router
from trident_gateway.upstream.served_model import GenerateCall

pytestmark = pytest.mark.slow
NUM_HANG_UPS, NUM_AT_ONCE = 1000, 12


def test_hang_ups_leave_no_request_no_connection_and_no_count() -> None:
    """They leave at once, soon, when the server has the request, or when the answer has begun."""
    draw = Random(13)  # noqa: S311
    sent: set[str] = set()
    begun: set[str] = set()

    def answer(body: dict[str, Any]) -> Script:
        sent.add(body["id"])
        # Where a script hangs, only `stop` ends a request that does not stream.
        return Script(
            tokens(body).events, gap_s=draw.choice([0, 0.001, 0.005]), hang_after=draw.choice([0, 1, 3, None])
        )

    async def whole(router: Router, call: GenerateCall) -> None:
        exchange = await router.open(call)
        try:
            begun.add(call.request_id)
            await read_out(exchange)
        finally:
            await exchange.close()

    async def client(router: Router, index: int, free: asyncio.Semaphore) -> None:
        async with free:
            call = make_call(router, streaming=index % 2 == 0, max_tokens=6)
            work = asyncio.ensure_future(whole(router, call))
            phase = index // 2 % 4
            if phase == 1:
                await asyncio.sleep(draw.uniform(0, 0.01))
            elif phase > 1:
                there = sent if phase == 2 else begun
                with suppress(asyncio.TimeoutError):  # one that hangs has no beginning
                    await asyncio.wait_for(until(lambda: work.done() or call.request_id in there), 0.2)
            work.cancel()
            with suppress(asyncio.CancelledError):
                await work

    async def main() -> None:
        async with FakeTriton(answer=answer) as fake, routing(fake) as router:
            free = asyncio.Semaphore(NUM_AT_ONCE)
            await asyncio.gather(*(client(router, index, free) for index in range(NUM_HANG_UPS)))
            await until(lambda: not fake.running)
            await until(lambda: router.status()[0].num_in_flight == 0)
            assert sum(fake.ended.values()) == len(fake.requests)
            assert len(fake.requests) > NUM_HANG_UPS / 4
            assert fake.ended["cancelled"] > NUM_HANG_UPS / 10
            names = [(request.body["tenant"], request.body["id"]) for request in fake.requests]
            assert len(set(names)) == len(names)
            assert {(stop["tenant"], stop["id"]) for stop in fake.stops} <= set(names)
            fake.answer = tokens
            assert len(await read_out(await router.open(make_call(router)))) == 4
            await router.close()
            await until(lambda: fake.num_connections == 0)

    run(main())
