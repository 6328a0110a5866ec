"""The gateway's way to real servers: hang-ups end requests, and a server that is killed takes little along."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from tests.e2e.metrics_page import settled_page
from tests.e2e.server import Server, serve, until
from tests.gateway.upstream.driver import read_out, run
from tests.gateway.upstream.driver import until as comes
from trident_gateway.api.usage import TokenMeter
from trident_gateway.errors import UpstreamLostError
from trident_gateway.settings import ServerAddress
from trident_gateway.upstream.call_spending import CallSpending
from trident_gateway.upstream.refusals import UpstreamRefusalError
from trident_gateway.upstream.router import Router
from trident_gateway.upstream.served_model import GenerateCall

NUM_HANG_UPS = 30
NUM_STREAMS = 4
REASONS = ("eos", "stop", "length", "cancelled", "timeout", "error", "refused")


def _address(server: Server) -> ServerAddress:
    return ServerAddress(f"http://{server.http}", f"http://{server.host}:{server.metrics_port}")


@asynccontextmanager
async def _routing(*servers: Server) -> AsyncIterator[Router]:
    router = Router([_address(server) for server in servers], patience_s=120, draw=Random(1))  # noqa: S311
    await router.start()
    try:
        yield router
    finally:
        await router.close()


def _call(router: Router, max_tokens: int, *, streaming: bool) -> GenerateCall:
    (model,) = router.models().values()
    fields = {"text_input": "hello", "max_tokens": max_tokens, "ignore_eos": True}
    return GenerateCall(model, json.dumps(fields).encode(), os.urandom(16).hex(), "tenant", streaming=streaming)


def test_gateway_upstream_stream_and_plain_answer_are_the_same_and_refusals_are_read(server: Server) -> None:
    async def main() -> None:
        async with _routing(server) as router:
            assert router.is_ready
            texts = []
            for streaming in (True, False):
                events = await read_out(await router.open(_call(router, 40, streaming=streaming)))
                assert (len(events) > 1) == streaming
                assert events[-1].num_output_tokens == 40
                assert events[0].num_input_tokens
                texts.append("".join(str(event.text_output) for event in events))
            assert texts[0] == texts[1]
            with pytest.raises(UpstreamRefusalError) as refused:
                await router.open(_call(router, -4, streaming=True))
            assert refused.value.wire.field == "max_tokens"
            assert router.status()[0].num_in_flight == 0

    run(main())


@pytest.mark.parametrize("streaming", [True, False])
def test_gateway_upstream_an_answer_that_nobody_waits_for_says_what_it_has_cost(
    server: Server, *, streaming: bool
) -> None:
    """Its last response has both counts, so that hanging up is not free."""
    meter = TokenMeter()

    async def main() -> None:
        async with _routing(server) as router:
            call = replace(_call(router, 4000, streaming=streaming), spending=CallSpending(meter.take))
            opening = asyncio.ensure_future(router.open(call))
            if streaming:
                await (await opening).close()
            else:
                await asyncio.sleep(0.5)
                opening.cancel()
                await asyncio.gather(opening, return_exceptions=True)
            await asyncio.wait_for(call.spending.wait_until_ended(), 4.0)

    run(main())
    assert meter.num_input
    assert 0 < meter.num_output < 4000


@pytest.mark.parametrize("streaming", [True, False])
def test_gateway_upstream_hang_ups_end_requests_within_two_seconds(server: Server, *, streaming: bool) -> None:
    """Each leaves at a moment of its own: on the way to the core, waiting, or in the middle of the text."""
    before = settled_page(server)
    draw = Random(13)  # noqa: S311

    async def client(router: Router) -> None:
        exchange = None
        try:
            exchange = await router.open(_call(router, 4000, streaming=streaming))
            await read_out(exchange)
        finally:
            if exchange is not None:
                await exchange.close()

    async def main() -> float:
        async with _routing(server) as router:
            clients = [asyncio.ensure_future(client(router)) for _ in range(NUM_HANG_UPS)]
            for one in clients:
                asyncio.get_running_loop().call_later(draw.uniform(0.02, 0.5), one.cancel)
            await asyncio.gather(*clients, return_exceptions=True)
            left_at = time.monotonic()
            await comes(lambda: router.status()[0].num_in_flight == 0)
            seconds = time.monotonic() - left_at
            assert all(one.cancelled() for one in clients)
            return seconds

    seconds = run(main())
    assert seconds < 2
    after = settled_page(server)
    ended = {reason: after.ended(reason) - before.ended(reason) for reason in REASONS}
    # One that left before it had sent anything is not there at all; none has gone on to its end.
    assert NUM_HANG_UPS / 2 < ended.pop("cancelled") <= NUM_HANG_UPS
    assert not any(ended.values())
    until(lambda: server.num_used_blocks == 0, 60, "the blocks come back")


def _tritonserver(server: Server) -> int:
    pid = server.process.pid
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split():
        if b"tritonserver" in Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0")[0]:
            return int(child)
    raise AssertionError(f"no tritonserver below {pid}")


def test_gateway_upstream_one_of_two_servers_killed_under_load_fails_its_running_streams_alone(
    server: Server, narrow_repository: Path, tmp_path: Path
) -> None:
    outcomes: Counter[tuple[str, bool, str]] = Counter()
    running: Counter[str] = Counter()
    is_over = False

    async def client(router: Router, *, streaming: bool) -> None:
        while not is_over:
            exchange = await router.open(_call(router, 60, streaming=streaming))
            running[exchange.server] += streaming
            outcome = "done"
            try:
                await read_out(exchange)
            except UpstreamLostError:
                outcome = "lost"
            finally:
                await exchange.close()
                running[exchange.server] -= streaming
            outcomes[exchange.server, streaming, outcome] += 1

    async def main(dead: Server, well: Server) -> None:
        nonlocal is_over
        async with _routing(dead, well) as router:
            clients = [
                asyncio.ensure_future(client(router, streaming=index < NUM_STREAMS)) for index in range(2 * NUM_STREAMS)
            ]
            await comes(
                lambda: all(outcomes[one.http, kind, "done"] > 2 for one in (dead, well) for kind in (True, False))
            )
            await comes(lambda: running[dead.http] > 0)
            os.kill(_tritonserver(dead), signal.SIGKILL)
            killed_at = time.monotonic()
            await comes(lambda: not router.status()[0].is_ready)
            assert time.monotonic() - killed_at < 2
            before = outcomes[well.http, False, "done"]
            await comes(lambda: outcomes[well.http, False, "done"] > before + 5)
            await comes(lambda: router.status()[0].is_ready)
            again = outcomes[dead.http, True, "done"]
            await comes(lambda: outcomes[dead.http, True, "done"] > again + 2)
            is_over = True
            await asyncio.gather(*clients)  # no call has failed in any other way
            lost = {key: count for key, count in outcomes.items() if key[2] == "lost"}
            assert set(lost) <= {(dead.http, True, "lost")}
            assert sum(lost.values()) <= NUM_STREAMS  # each was in the middle of one at most
            assert [status.num_in_flight for status in router.status()] == [0, 0]

    with serve(narrow_repository, tmp_path / "log", "--restart") as dead:
        run(main(dead, server), 240)
