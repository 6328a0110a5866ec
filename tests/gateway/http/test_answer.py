"""Streams: their head, their silence, their end, and clients that leave or do not read."""

from __future__ import annotations

import asyncio
import random
import socket
from contextlib import suppress
from dataclasses import replace

import pytest

from tests.gateway.http.room import JSON, Client, Room, endpoint, errors_of, run, until
from trident_gateway.api.interface import AnswerSink, Endpoint, HttpRequest
from trident_gateway.errors import ApiError, OverloadedError
from trident_gateway.settings import GatewaySettings, HttpLimits

NO_COMMENTS = GatewaySettings(keep_alive_s=0)
SOON = GatewaySettings(keep_alive_s=0.05)
COMMENT = b": keep-alive\n\n"


@endpoint()
async def count(request: HttpRequest, out: AnswerSink) -> None:
    """Send as many events as the body says."""
    number = int(await request.body())
    out.expect_events()
    for index in range(number):
        await out.send_events(b"data: %d\n\n" % index)
    await out.end_events(b"data: [DONE]\n\n")


def test_answer_is_a_stream_of_events_each_send_a_chunk() -> None:
    async def test() -> None:
        async with Room(count) as room:
            reply = await room.ask("POST", "/v1/x", b"3", JSON)
            assert reply.chunks == [b"data: 0\n\n", b"data: 1\n\n", b"data: 2\n\n", b"data: [DONE]\n\n"]
            assert reply.headers["content-type"] == "text/event-stream; charset=utf-8"
            assert reply.headers["cache-control"] == "no-cache"
            assert reply.headers["x-accel-buffering"] == "no"
            assert reply.headers["x-request-id"]
            (record,) = room.records
            assert record.is_stream
            assert record.ttft_s is not None
            page = room.metrics.render()
            assert b'ttft_seconds_count{model="",side="stable"} 1\n' in page
            assert b'itl_seconds_count{model="",side="stable"} 2\n' in page

    run(test)


def test_answer_sends_its_head_with_the_first_events_so_that_errors_before_have_their_status() -> None:
    is_refused = True

    @endpoint()
    async def late(request: HttpRequest, out: AnswerSink) -> None:
        await request.body()
        out.expect_events()
        if is_refused:
            raise OverloadedError
        await out.end_events(b"data: x\n\n")

    async def test() -> None:
        nonlocal is_refused
        async with Room(late) as room:
            assert errors_of([await room.ask("POST", "/v1/x", b"1", JSON)]) == [
                (503, "service_unavailable_error", "server_is_overloaded")
            ]
            is_refused = False
            assert (await room.ask("POST", "/v1/x", b"1", JSON)).body == b"data: x\n\n"

    run(test)


def held(gate: asyncio.Event, error: ApiError | None = None) -> Endpoint:
    """Return an endpoint that waits before its first event and before its last one."""

    @endpoint()
    async def handle(request: HttpRequest, out: AnswerSink) -> None:
        await request.body()
        out.expect_events(lambda failure: b"event: error\ndata: " + failure.body() + b"\n\n")
        await gate.wait()
        if error is not None:
            raise error
        gate.clear()
        await out.send_events(b"data: first\n\n")
        await gate.wait()
        await out.end_events(b"data: last\n\n")

    return handle


def test_answer_breaks_silence_with_comments_before_the_first_event_and_between_events() -> None:
    async def test() -> None:
        gate = asyncio.Event()
        async with Room(held(gate), settings=SOON) as room:
            client = await room.connect()
            client.send("POST", "/v1/x", b"1", JSON)
            assert (await client.head()).status == 200
            assert [await client.chunk() for _ in range(2)] == [COMMENT, COMMENT]
            gate.set()
            first = COMMENT
            while first == COMMENT:
                first = await client.chunk()
            assert first == b"data: first\n\n"
            assert [await client.chunk() for _ in range(2)] == [COMMENT, COMMENT]
            gate.set()
            rest = [await client.chunk()]
            while rest[-1]:
                rest.append(await client.chunk())
            assert [part for part in rest if part != COMMENT] == [b"data: last\n\n", b""]
            client.close()

    run(test)


def test_answer_that_fails_after_a_comment_is_an_event_in_the_endpoints_own_form() -> None:
    async def test() -> None:
        gate = asyncio.Event()
        async with Room(held(gate, OverloadedError()), settings=SOON) as room:
            client = await room.connect()
            client.send("POST", "/v1/x", b"1", JSON)
            assert (await client.head()).status == 200
            assert await client.chunk() == COMMENT
            gate.set()
            part = COMMENT
            while part == COMMENT:
                part = await client.chunk()
            assert part.startswith(b'event: error\ndata: {"error":')
            assert await client.chunk() == b""
            client.close()
            await room.quiet()
            (record,) = room.records
            assert (record.status, record.is_error, record.error_code) == (200, True, "server_is_overloaded")

    run(test)


@pytest.mark.parametrize("settings", [NO_COMMENTS, replace(NO_COMMENTS, keep_alive_s=30.0)])
def test_answer_has_no_comments_where_none_are_due(settings: GatewaySettings) -> None:
    async def test() -> None:
        gate = asyncio.Event()
        async with Room(held(gate), settings=settings) as room:
            client = await room.connect()
            client.send("POST", "/v1/x", b"1", JSON)
            await until(lambda: room.lifecycle.num_running)
            await asyncio.sleep(0.1)
            gate.set()
            await client.head()
            assert await client.chunk() == b"data: first\n\n"
            gate.set()
            assert await client.chunk() == b"data: last\n\n"
            client.close()

    run(test)


class Held:
    """Endpoints that hold something until they are cancelled or done, and say what has become of them."""

    def __init__(self) -> None:
        self.num_held = 0
        self.num_cancelled = 0
        self.num_settled = 0

    def endpoints(self) -> tuple[Endpoint, ...]:
        @endpoint("/v1/stream")
        async def stream(request: HttpRequest, out: AnswerSink) -> None:
            number = int(await request.body())
            async with self:
                out.expect_events()
                for index in range(number):
                    await out.send_events(b"data: %d\n\n" % index)
                    await asyncio.sleep(0)
                await out.end_events(b"data: [DONE]\n\n")

        @endpoint("/v1/plain")
        async def plain(request: HttpRequest, out: AnswerSink) -> None:
            number = int(await request.body())
            async with self:
                for _ in range(number):
                    await asyncio.sleep(0)
                await out.send_json(b"{}")

        @endpoint("/v1/forever")
        async def forever(request: HttpRequest, out: AnswerSink) -> None:
            number = int(await request.body())
            async with self:
                if number:
                    out.expect_events()
                for index in range(number - 1):
                    await out.send_events(b"data: %d\n\n" % index)
                await asyncio.Event().wait()

        return stream, plain, forever

    async def __aenter__(self) -> None:
        self.num_held += 1

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.num_cancelled += kind is asyncio.CancelledError
        await asyncio.sleep(0.001)  # gives back what it holds, which a store may take a while for
        self.num_settled += 1
        self.num_held -= 1


@pytest.mark.parametrize(
    ("body", "status", "phase"), [(b"0", 499, "plain"), (b"1", 499, "waiting"), (b"3", 200, "stream")]
)
def test_answer_cancels_its_endpoint_when_the_client_leaves(body: bytes, status: int, phase: str) -> None:
    async def test() -> None:
        endpoints = Held()
        async with Room(*endpoints.endpoints()) as room:
            client = await room.connect()
            client.send("POST", "/v1/forever", body, JSON)
            await until(lambda: endpoints.num_held)
            if phase == "stream":
                await client.head()
                assert await client.chunk() == b"data: 0\n\n"
            client.close()
            await room.quiet()
            assert (endpoints.num_held, endpoints.num_cancelled, endpoints.num_settled) == (0, 1, 1)
            (record,) = room.records
            assert (record.status, record.client_gone, record.is_error) == (status, phase, False)
            assert b'client_gone_total{phase="%b"} 1\n' % phase.encode() in room.metrics.render()

    run(test)


def test_answer_lets_its_endpoint_settle_after_the_end_though_the_client_has_hung_up() -> None:
    async def test() -> None:
        gone, settled = asyncio.Event(), asyncio.Event()

        @endpoint()
        async def handle(request: HttpRequest, out: AnswerSink) -> None:
            await request.body()
            out.expect_events()
            await out.end_events(b"data: [DONE]\n\n")
            await gone.wait()
            await asyncio.sleep(0.05)
            settled.set()

        async with Room(handle) as room:
            reply = await room.ask("POST", "/v1/x", b"1", JSON)
            assert reply.body == b"data: [DONE]\n\n"
            gone.set()
            await room.quiet()
            assert settled.is_set()
            assert room.records[0].client_gone == ""

    run(test)


@pytest.mark.slow
def test_answer_leaves_nothing_behind_after_a_thousand_hang_ups() -> None:
    draw = random.Random(13)  # noqa: S311

    async def hang_up(room: Room) -> None:
        client = await room.connect()
        path, number = draw.choice(("/v1/stream", "/v1/plain", "/v1/forever")), draw.choice((0, 1, 2, 5, 50))
        request = (
            b"POST %b HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n%02d"
            % (
                path.encode(),
                number,
            )
        )
        # Somewhere in the request, at once after it, or after a part of the answer.
        num_bytes = draw.choice((len(request), len(request), len(request) - 1, 20))
        client.writer.write(request[:num_bytes])
        await client.writer.drain()
        for _ in range(draw.choice((0, 0, 1, 3))):
            if path == "/v1/stream" and number > 5 and num_bytes == len(request):
                await client.reader.read(64)
            await asyncio.sleep(0.001)
        _end(client, is_rude=draw.random() < 0.5)

    async def test() -> None:
        endpoints = Held()
        async with Room(*endpoints.endpoints(), settings=SOON) as room:
            for _ in range(20):
                await asyncio.gather(*(hang_up(room) for _ in range(50)))
            await room.quiet()
            assert endpoints.num_held == 0
            assert endpoints.num_settled > 500
            assert endpoints.num_cancelled > 100
            assert not room.complaints
            assert len(asyncio.all_tasks()) < 10
            reply = await room.ask("POST", "/v1/stream", b"1", JSON)
            assert reply.chunks == [b"data: 0\n\n", b"data: [DONE]\n\n"]

    run(test)


def _end(client: Client, *, is_rude: bool) -> None:
    if is_rude:  # a reset rather than an end
        sock = client.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
    client.writer.transport.abort()


def test_answer_waits_for_a_client_that_does_not_read() -> None:
    sent = 0

    @endpoint()
    async def flood(request: HttpRequest, out: AnswerSink) -> None:
        nonlocal sent
        await request.body()
        out.expect_events()
        while True:
            await out.send_events(b"data: " + b"x" * 10_000 + b"\n\n")
            sent += 10_000

    async def test() -> None:
        async with Room(flood, settings=SOON) as room:
            client = await room.connect()
            client.send("POST", "/v1/x", b"1", JSON)
            await client.head()
            before = -1
            while sent != before:  # until it stands
                before = sent
                await asyncio.sleep(0.2)
            assert sent < 20_000_000  # what buffers of the kernel hold
            client.close()
            await room.quiet()
            assert room.records[0].client_gone == "stream"

    run(test)


@pytest.mark.slow
def test_answer_gives_up_on_a_client_that_never_reads_again() -> None:
    num_ended = 0

    @endpoint()
    async def flood(request: HttpRequest, out: AnswerSink) -> None:
        nonlocal num_ended
        await request.body()
        out.expect_events()
        try:
            while True:
                await out.send_events(b"data: " + b"x" * 100_000 + b"\n\n")
        finally:
            num_ended += 1

    settings = GatewaySettings(http=HttpLimits(send_timeout_s=10.0))

    async def test() -> None:
        async with Room(flood, settings=settings) as room:
            deaf = await room.connect()
            deaf.send("POST", "/v1/x", b"1", JSON)
            slow = await room.connect()
            slow.send("POST", "/v1/x", b"1", JSON)
            await slow.head()
            while not num_ended:  # reads on, and is served on
                await slow.chunk()
            assert room.lifecycle.num_running == 1
            assert room.records[0].client_gone == "stream"
            slow.close()
            await room.quiet()
            deaf.close()

    run(test)


@pytest.mark.parametrize("is_stream", [True, False])
def test_answer_ends_an_endpoint_that_has_missed_its_cancellation(is_stream: bool) -> None:
    has_ended = False

    @endpoint()
    async def deaf(request: HttpRequest, out: AnswerSink) -> None:
        nonlocal has_ended
        await request.body()
        out.expect_events()
        with suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        if is_stream:
            await out.send_events(b"data: 1\n\n")
        else:
            await out.send_json(b"{}")
        has_ended = True

    async def test() -> None:
        async with Room(deaf) as room:
            client = await room.connect()
            client.send("POST", "/v1/x", b"1", JSON)
            await until(lambda: room.lifecycle.num_running)
            client.close()
            await room.quiet()
            assert not has_ended
            assert room.records[0].client_gone

    run(test)
