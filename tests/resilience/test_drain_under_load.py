"""A drain under 20 streams and 10 plain requests a second, with all its numbers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

from tests.fakes.triton_http import FakeTriton
from tests.gateway.http.room import Client, run, until
from tests.gateway.process import JSON, GatewayProcess
from tests.resilience.load import PATH, KeepingClient, body, connect, loading
from tests.resilience.pairs import paced

NUM_STREAMS = 20
#: Of the gateway under test. The default of 15 s is the same mechanism.
DELAY_S = 3.0


async def probe(gateway: GatewayProcess, path: str) -> tuple[int, str]:
    reply = await gateway.ask(path, private=True)
    return reply.status, json.loads(reply.body)["status"]


def test_drain_under_load_serves_for_the_delay_then_refuses_and_lets_every_stream_end() -> None:
    async def test() -> None:
        options = ("--drain-delay", f"{DELAY_S:g}")
        async with (
            FakeTriton(answer=paced(0.05)) as fake,
            GatewayProcess(fake, options=options) as gateway,
            loading(gateway.port) as streams,
            loading(gateway.port) as plain,
        ):
            # Each stream takes 6 s by itself, so that all are there when refusals begin.
            streams.begin(NUM_STREAMS, stream=True, max_tokens=120, every_s=0.01)
            plain.begin(10, stream=False, max_tokens=2, every_s=1.0)
            await until(lambda: len([one for one in fake.running if one.body["stream"]]) == NUM_STREAMS)
            await until(lambda: plain.num_answered >= 10)
            streams._is_over = True  # none begins again

            loop = asyncio.get_running_loop()
            began = loop.time()
            gateway.signal()
            while await probe(gateway, "/ready") != (503, "draining"):
                pass
            withdrawn_s = loop.time() - began
            assert await probe(gateway, "/live") == (200, "live")

            # What connects and asks within the delay is served; the connection ends with its answer.
            before = plain.num_answered
            while loop.time() - began < DELAY_S - 0.5:
                client = await connect(gateway.port)
                client.send("POST", PATH, body(stream=False, max_tokens=1), JSON)
                reply = await client.reply()
                assert (reply.status, reply.headers["connection"]) == (200, "close")
                client.close()
                await asyncio.sleep(0.1)
            assert plain.lost == {}
            assert plain.num_answered > before

            # Then it is refused, in words that let a client go elsewhere at once.
            await until(lambda: plain.lost)
            assert loop.time() - began >= DELAY_S
            client = await connect(gateway.port)
            client.send("POST", PATH, body(stream=False, max_tokens=1), JSON)
            reply = await client.reply()
            assert (reply.status, reply.error()["code"]) == (503, "draining")
            assert (reply.headers["retry-after"], reply.headers["connection"]) == ("1", "close")
            client.close()
            assert len(fake.running) >= NUM_STREAMS, "they go on"
            plain._is_over = True

            await streams.end()
            assert await gateway.status() == 0
            await plain.end()
            assert (streams.num_answered, streams.lost) == (NUM_STREAMS, {})
            assert set(plain.lost) <= {("plain", "503 draining"), ("plain", "ConnectionRefusedError")}
            assert fake.ended["cancelled"] + fake.ended["left"] == 0
        # 100 ms, and as much again for a machine that runs other tests, too.
        assert withdrawn_s < 0.2

    run(test)


def test_drain_under_load_cuts_streams_after_its_time_and_the_engine_learns_of_each() -> None:
    async def test() -> None:
        options = ("--drain-delay", "0", "--drain-timeout", "2")
        async with FakeTriton(answer=paced(0.05)) as fake, GatewayProcess(fake, options=options) as gateway:
            clients = [KeepingClient(gateway.port) for _ in range(NUM_STREAMS)]
            asked = [asyncio.ensure_future(client.ask(body(stream=True, max_tokens=400))) for client in clients]
            await until(lambda: len(fake.running) == NUM_STREAMS and all(one.num_sent > 2 for one in fake.running))
            gateway.signal()
            for status, answer in await asyncio.gather(*asked):
                assert status == 200
                assert json.loads(answer.split(b"data: ")[-1])["error"]["code"] == "shutdown"
            assert await gateway.status() == 3
            await until(lambda: fake.ended["cancelled"] + fake.ended["left"] == NUM_STREAMS)
            assert len(fake.stops) == NUM_STREAMS

    run(test)


def test_drain_answers_once_more_on_connections_whose_clients_could_not_know() -> None:
    """A client that asks again on a connection that it has kept would get a refusal, while a new one goes elsewhere."""

    async def test() -> None:
        options = ("--drain-delay", "0.5")
        async with FakeTriton(answer=paced(0.05)) as fake, GatewayProcess(fake, options=options) as gateway:
            kept, streaming = await connect(gateway.port), await connect(gateway.port)
            kept.send("GET", "/v1/models")
            assert "connection" not in (await kept.reply()).headers
            streaming.send("POST", PATH, body(stream=True, max_tokens=40), JSON)
            assert "connection" not in (await streaming.head()).headers
            gateway.signal()
            while (await gateway.ask("/v1/models")).status != 503:
                await asyncio.sleep(0.02)
            kept.send("GET", "/v1/models")
            reply = await kept.reply()
            assert (reply.status, reply.headers["connection"]) == (200, "close")
            assert await kept.rest() == b""

            events = [part async for part in chunks(streaming)]
            assert events[-1].endswith(b"data: [DONE]\n\n")
            streaming.send("GET", "/v1/models")
            reply = await streaming.reply()
            assert (reply.status, reply.headers["connection"]) == (200, "close")
            assert await gateway.status() == 0

    run(test)


async def chunks(client: Client) -> AsyncIterator[bytes]:
    """The chunks of a body until its end."""
    while part := await client.chunk():
        yield part
