"""Servers whose engines stand still while their pages go on answering, and figures that are not to be believed."""

from __future__ import annotations

import asyncio
import socket

import pytest

from tests.fakes.triton_http import FakeTriton, Script, tokens
from tests.gateway.upstream.driver import QUICK, ask, make_call, read_out, routing, run, until
from trident_gateway.upstream.http_client import HttpClient
from trident_gateway.upstream.router import Router
from trident_gateway.upstream.watch_times import WatchTimes

HASTY = WatchTimes(probe_s=0.02, probe_down_s=0.02, models_s=0.05, hung_s=0.4, trial_s=0.5)


def _ready(router: Router) -> list[bool]:
    return [status.is_ready for status in router.status()]


def test_watch_times_notice_a_hang_and_a_silence_within_fifteen_seconds() -> None:
    times = WatchTimes()
    assert times.hung_s == 10
    assert times.hung_s + 2 * times.probe_s + times.timeout_s / 2 < 15
    assert times.probe_s + 3 * times.timeout_s + 2 * times.probe_down_s < 15  # three failures in a row


def test_server_that_hangs_is_not_ready_until_its_next_step() -> None:
    """Its pages answer all the time, with the numbers of before, as Triton's do for an engine that was stopped."""

    async def main() -> None:
        fake, gate = FakeTriton(), asyncio.Event()
        async with routing(fake, times=HASTY) as router:
            fake.answer = lambda body: Script(tokens(body).events, gates={1: gate})
            begin = asyncio.get_running_loop().time()
            running = await router.open(make_call(router))
            assert router.is_ready
            await until(lambda: not router.is_ready)
            assert asyncio.get_running_loop().time() - begin >= HASTY.hung_s
            (status,) = router.status()
            assert (status.is_ready, status.is_well, status.num_ejections) == (False, True, 0)
            gate.set()
            await until(lambda: router.is_ready)
            assert len(await read_out(running)) == 4

    run(main())


def test_server_that_is_busy_is_ready_however_long_calls_wait() -> None:
    async def main() -> None:
        fake = FakeTriton()
        fake.figures["core"] = (250, 500, 1.0)
        async with routing(fake, times=HASTY) as router:
            fake.answer = lambda body: Script(tokens(body).events, hang_after=0)
            waiting = [asyncio.ensure_future(ask(router)) for _ in range(20)]
            loop = asyncio.get_running_loop()
            end = loop.time() + 4 * HASTY.hung_s
            while loop.time() < end:
                fake.num_steps += 1
                await asyncio.sleep(HASTY.hung_s / 4)
                assert router.is_ready
            for call in waiting:
                call.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)

    run(main())


def test_server_that_nobody_asks_or_reads_does_not_hang() -> None:
    async def main() -> None:
        fake = FakeTriton()
        big = {"text_output": "x" * 300_000}
        async with routing(fake, times=HASTY) as router:
            fake.answer = lambda body: Script([*tokens(body).events, *[big] * 100], hang_after=101)
            unread = await router.open(make_call(router))
            await asyncio.sleep(3 * HASTY.hung_s)  # nothing shows that it does not come about
            assert router.is_ready
            await unread.close()

    run(main())


def test_calls_go_to_another_server_while_one_hangs_and_one_at_a_time_tries_it_later() -> None:
    async def main() -> None:
        hung, well = FakeTriton(), FakeTriton()
        async with routing(hung, well, times=HASTY) as router:
            hung.answer = lambda body: Script(tokens(body).events, hang_after=0)
            while not hung.running:
                first = asyncio.ensure_future(ask(router))
                await asyncio.sleep(0.05)
            await until(lambda: _ready(router) == [False, True])
            num_before = len(hung.requests)
            for _ in range(20):
                assert await ask(router) == " t0 t1 t2 t3"
            assert len(hung.requests) == num_before
            first.cancel()
            await asyncio.gather(first, return_exceptions=True)
            await until(lambda: _ready(router) == [True, True])  # it has nobody that waits, and never would have
            trials = [asyncio.ensure_future(ask(router)) for _ in range(20)]
            await until(lambda: len(hung.requests) > num_before)
            assert _ready(router) == [False, True]
            await until(lambda: sum(trial.done() for trial in trials) == 19)
            assert len(hung.requests) == num_before + 1
            hung.answer = tokens
            hung.num_steps += 1
            await until(lambda: _ready(router) == [True, True])
            for trial in trials:
                trial.cancel()
            await asyncio.gather(*trials, return_exceptions=True)

    run(main())


def test_figures_that_are_old_give_way_to_the_calls_that_the_gateway_knows_of() -> None:
    async def main() -> None:
        full, free = FakeTriton(), FakeTriton()
        full.figures["core"] = (50, 200, 0.9)
        times = WatchTimes(probe_s=0.02, probe_down_s=0.02, models_s=0.05, stale_s=0.3)
        async with routing(full, free, times=times) as router:
            for _ in range(10):
                assert (await router.open(make_call(router))).server == free.name
            assert not full.requests
            full.hides_metrics = free.hides_metrics = True  # the scrape is cut, and nothing else
            await until(lambda: all(status.num_steps is None for status in router.status()))
            held = [await router.open(make_call(router)) for _ in range(20)]
            assert {exchange.server for exchange in held[:10]} == {full.name}
            assert abs(len(full.requests) - len(free.requests)) <= 2
            assert _ready(router) == [True, True]

    run(main())


def test_machine_that_is_gone_is_noticed_by_tcp_within_the_upstream_timeout() -> None:
    """The kernel asks after 10 s of silence, and gives up within 25 s; nothing that is sent waits longer either."""

    async def main() -> None:
        async with FakeTriton() as fake:
            client = HttpClient(fake.address.url)
            connection = await client.connect()
            assert connection._transport is not None
            peer = connection._transport.get_extra_info("socket")
            assert peer.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            idle, interval, count = (
                peer.getsockopt(socket.IPPROTO_TCP, option)
                for option in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
            )
            assert idle == 10
            assert idle + interval * count <= 30
            assert peer.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) <= 30_000
            connection.abort()

    run(main())


@pytest.mark.parametrize("is_hung", [True, False])
def test_json_calls_count_as_calls(is_hung: bool) -> None:
    """A server that leaves ends them, too, and one whose preprocessing hangs is noticed."""

    async def main() -> None:
        fake = FakeTriton()
        async with routing(fake, times=HASTY if is_hung else QUICK) as router:
            model = router.find("demo")
            assert model is not None
            fake.is_slow = True
            call = asyncio.ensure_future(router.call_json(model, "preprocessing/generate", b"{}"))
            await until(lambda: [status.num_in_flight for status in router.status()] == [1])
            if is_hung:
                await until(lambda: not router.is_ready)
            fake.is_slow = False
            assert b"input_ids" in await call
            assert [status.num_in_flight for status in router.status()] == [0]

    run(main())
