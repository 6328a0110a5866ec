"""A thousand clients that leave, at any moment, leave nothing behind."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from random import Random

import pytest

from tests.fakes.triton_http import FakeTriton, Script, tokens
from tests.gateway.upstream.driver import make_call, read_out, routing, run, until

pytestmark = pytest.mark.slow
NUM_HANG_UPS, NUM_AT_ONCE = 1000, 12


def test_hang_ups_leave_no_request_no_connection_and_no_count() -> None:
    draw = Random(13)  # noqa: S311

    async def main() -> None:
        async with FakeTriton() as fake, routing(fake) as router:
            # Where a script hangs, only `stop` ends a request that does not stream.
            fake.answer = lambda body: Script(
                tokens(body).events, gap_s=draw.choice([0, 0.001, 0.005]), hang_after=draw.choice([0, 1, 3, None])
            )
            free = asyncio.Semaphore(NUM_AT_ONCE)

            async def whole(streaming: bool) -> None:
                exchange = await router.open(make_call(router, streaming=streaming, max_tokens=6))
                try:
                    await read_out(exchange)
                finally:
                    await exchange.close()

            async def client(seconds: float, streaming: bool) -> None:
                async with free:
                    work = asyncio.ensure_future(whole(streaming))
                    await asyncio.wait({work}, timeout=seconds)
                    work.cancel()
                    with suppress(asyncio.CancelledError):
                        await work

            await asyncio.gather(
                *(client(draw.choice([0, 0.005, 0.02, 0.1]), bool(index % 2)) for index in range(NUM_HANG_UPS))
            )
            await until(lambda: not fake.running)
            await until(lambda: router.status()[0].num_in_flight == 0)
            assert sum(fake.ended.values()) == len(fake.requests)
            assert len(fake.requests) > NUM_HANG_UPS / 3
            assert fake.ended["cancelled"] > NUM_HANG_UPS / 10
            names = [(request.body["tenant"], request.body["id"]) for request in fake.requests]
            assert len(set(names)) == len(names)
            assert {(stop["tenant"], stop["id"]) for stop in fake.stops} <= set(names)
            fake.answer = tokens
            assert len(await read_out(await router.open(make_call(router)))) == 4
            await router.close()
            await until(lambda: fake.num_connections == 0)

    run(main())
