"""What arrives on a socket before it is a request."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

import pytest

from tests.gateway.http.room import JSON, Reply, Room, echo, endpoint, run, until
from trident_gateway.api.interface import AnswerSink, HttpRequest
from trident_gateway.settings import GatewaySettings, HttpLimits

HASTY = GatewaySettings(http=HttpLimits(receive_timeout_s=0.2))
IDLE = GatewaySettings(http=HttpLimits(idle_timeout_s=0.2))
NARROW = GatewaySettings(http=HttpLimits(max_header_bytes=4096))
HEAD = b"POST /v1/x HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"


async def refused(room: Room, request: bytes) -> Reply:
    """Send bytes and return the answer, after which the connection is closed."""
    client = await room.connect()
    client.writer.write(request)
    reply = await client.reply()
    assert reply.headers["connection"] == "close"
    assert reply.headers["content-type"] == "application/json"
    assert reply.headers["x-request-id"].startswith("req_")
    assert await client.rest() == b""
    client.close()
    return reply


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"a" * 100,
        b"nonsense\r\n\r\n",
        HEAD + b"content-length: 2\r\ntransfer-encoding: chunked\r\n\r\n{}",
        HEAD + b"transfer-encoding: chunked\r\ncontent-length: 2\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
        HEAD + b"content-length: 2\r\ncontent-length: 3\r\n\r\n{}",
        HEAD + b"content-length: -1\r\n\r\n{}",
        HEAD + b"content-length: 99999999999999999999999999\r\n\r\n{}",
        HEAD + b"transfer-encoding: chunked\r\n\r\nzz\r\n{}\r\n",
        b"POST /v1/x HTTP/1.1\r\nhost : a\r\n\r\n",
        b"GET http://[ HTTP/1.1\r\nhost: a\r\n\r\n",
        b"CONNECT a:80 HTTP/1.1\r\nhost: a\r\n\r\n",
    ],
)
def test_connection_refuses_what_is_not_http(request_bytes: bytes) -> None:
    async def test() -> None:
        async with Room(echo) as room:
            reply = await refused(room, request_bytes)
            assert (reply.status, reply.error()["code"]) == (400, "invalid_http_request")
            await room.quiet()

    run(test)


def test_connection_refuses_a_head_above_the_limit_in_one_header_in_many_and_in_the_path() -> None:
    async def test() -> None:
        async with Room(echo, settings=NARROW) as room:
            for request in (
                HEAD + b"x-long: " + b"a" * 4096 + b"\r\n\r\n",
                HEAD + b"x-endless: " + b"a" * 8192,
                HEAD + b"x: y\r\n" * 1000,
                b"GET /" + b"a" * 8192 + b" HTTP/1.1\r\n",
            ):
                reply = await refused(room, request)
                assert (reply.status, reply.error()["code"]) == (431, "headers_too_large")
            # A large body in the same segment as a small head is none of it.
            fits = await room.ask("POST", "/v1/x", b"1" * 8192, JSON)
            assert fits.status == 200

    run(test)


@pytest.mark.parametrize("start", [b"P", HEAD[:-2], HEAD])
def test_connection_gives_up_on_a_head_that_does_not_come(start: bytes) -> None:
    async def test() -> None:
        async with Room(echo, settings=HASTY) as room:
            reply = await refused(room, start)
            assert (reply.status, reply.error()["code"]) == (408, "request_timeout")

    run(test)


def test_connection_gives_a_slow_head_no_more_time_for_each_byte() -> None:
    async def test() -> None:
        async with Room(echo, settings=HASTY) as room:
            client = await room.connect()
            reply = asyncio.ensure_future(client.reply())
            for byte in HEAD:
                if reply.done():
                    break
                client.writer.write(bytes([byte]))
                await asyncio.wait({reply}, timeout=0.05)
            else:
                pytest.fail("the head was waited for to its last byte")
            assert (await reply).status == 408
            client.close()

    run(test)


def test_connection_without_a_request_is_closed() -> None:
    async def test() -> None:
        async with Room(echo, settings=IDLE) as room:
            silent, used = await room.connect(), await room.connect()
            used.send("POST", "/v1/x", b"{}", JSON)
            assert (await used.reply()).status == 200
            assert (await silent.rest(), await used.rest()) == (b"", b"")

    run(test)


def test_connection_that_streams_is_not_idle() -> None:
    @endpoint()
    async def slow(request: HttpRequest, out: AnswerSink) -> None:
        await request.body()
        out.expect_events()
        await out.send_events(b"data: 1\n\n")
        await asyncio.sleep(0.6)
        await out.end_events(b"data: 2\n\n")

    settings = GatewaySettings(http=HttpLimits(idle_timeout_s=0.2, receive_timeout_s=0.2))

    async def test() -> None:
        async with Room(slow, settings=settings) as room:
            assert (await room.ask("POST", "/v1/x", b"{}", JSON)).body == b"data: 1\n\ndata: 2\n\n"

    run(test)


def test_connection_that_trickles_a_refused_body_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trident_gateway.http.connection._BODY_GRACE_S", 0.0)

    async def test() -> None:
        async with Room(echo, settings=HASTY) as room:
            client = await room.connect()
            client.send("POST", "/nothing", headers={**JSON, "content-length": "100000"})
            assert (await client.reply()).status == 404
            rest = asyncio.ensure_future(client.rest())
            for _ in range(1000):
                client.writer.write(b"x")
                await asyncio.wait({rest}, timeout=0.02)
                if rest.done():
                    break
            with suppress(ConnectionResetError):  # what it has sent meanwhile was not read
                assert await rest == b""
            assert rest.done()

    run(test)


def test_connection_above_their_number_is_refused() -> None:
    settings = GatewaySettings(http=HttpLimits(max_connections=3))

    async def test() -> None:
        async with Room(echo, settings=settings) as room:
            clients = [await room.connect() for _ in range(3)]
            clients[0].send("POST", "/v1/x", b"{}", JSON)
            assert (await clients[0].reply()).status == 200
            reply = await refused(room, b"")
            assert (reply.status, reply.error()["code"]) == (503, "server_is_overloaded")
            clients.pop().close()
            while True:
                reply = await room.ask("POST", "/v1/x", b"{}", JSON)
                if reply.status == 200:
                    break
            for client in clients:
                client.close()

    run(test)


def test_connection_asks_for_a_body_that_waits_to_be_asked_for() -> None:
    async def test() -> None:
        async with Room(echo) as room:
            client = await room.connect()
            client.send("POST", "/v1/x", headers={**JSON, "content-length": "2", "expect": "100-continue"})
            assert await client.reader.readexactly(25) == b"HTTP/1.1 100 Continue\r\n\r\n"
            client.writer.write(b"{}")
            assert (await client.reply()).body == b"{}"
            client.close()

    run(test)


def chunked(trailers: bytes) -> bytes:
    """Return a request whose body comes in chunks and ends with trailers."""
    return HEAD + b"transfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n" + trailers


def test_connection_lets_no_trailer_look_like_a_header() -> None:
    seen: list[str | None] = []

    @endpoint()
    async def look(request: HttpRequest, out: AnswerSink) -> None:
        await request.body()
        seen.append(request.header("x-late"))
        await out.send_json(b"{}")

    async def test() -> None:
        async with Room(look) as room:
            client = await room.connect()
            for _ in range(2):
                client.writer.write(chunked(b"x-late: yes\r\nx-other: no\r\n\r\n"))
                assert (await client.reply()).status == 200
            client.close()
            assert seen == [None, None]

    run(test)


@pytest.mark.parametrize(
    ("trailers", "is_together"),
    [
        (b"x: y\r\n" * 1000, True),
        (b"x: y\r\n" * 1000, False),
        (b"x: " + b"a" * 8192 + b"\r\n\r\n", True),
        (b"x-endless: " + b"a" * 8192, False),
    ],
)
def test_connection_refuses_trailers_above_the_limit(trailers: bytes, is_together: bool) -> None:
    async def test() -> None:
        async with Room(echo, settings=NARROW) as room:
            client = await room.connect()
            if is_together:
                client.writer.write(chunked(trailers))
            else:
                client.writer.write(chunked(b""))
                await until(lambda: room.lifecycle.num_running)
                client.writer.write(trailers)
            with suppress(ConnectionResetError):
                await client.rest()
            client.close()
            await room.quiet()
            assert not room.complaints
            assert room._public.refusals[431] == 1

    run(test)


def test_connection_takes_many_small_chunks_and_many_small_requests_at_once() -> None:
    async def test() -> None:
        async with Room(echo, settings=NARROW) as room:
            client = await room.connect()
            head = HEAD
            client.writer.write(head + b"transfer-encoding: chunked\r\n\r\n" + b"1\r\n1\r\n" * 4000 + b"0\r\n\r\n")
            assert (await client.reply()).body == b"1" * 4000
            client.writer.write((head + b"content-length: 0\r\n\r\n") * 100 + head + b"content-length: 1\r\n\r\n")
            for _ in range(100):
                assert (await client.reply()).status == 200
            client.writer.write(b"1")
            assert (await client.reply()).body == b"1"
            client.close()

    run(test)


@pytest.mark.parametrize("is_stream", [True, False])
def test_connection_tells_the_request_that_runs_that_its_client_has_gone(is_stream: bool) -> None:
    never = asyncio.Event

    @endpoint()
    async def wait(request: HttpRequest, out: AnswerSink) -> None:
        await request.body()
        if is_stream:
            out.expect_events()
            await out.send_events(b"data: 1\n\n")
        await never().wait()

    async def test() -> None:
        async with Room(wait) as room:
            client = await room.connect()
            client.send("POST", "/v1/x", b"{}", JSON)
            await until(lambda: room.lifecycle.num_running)
            if is_stream:
                await client.head()
            client.send("POST", "/v1/x", b"{}", JSON)
            await until(lambda: any(one.pipeline for one in connections_of(room)))
            client.close()
            await room.quiet()
            assert [record.client_gone for record in room.records] == ["stream" if is_stream else "plain"]
            assert not room.complaints

    run(test)


def test_connection_closes_no_stream_for_a_request_that_was_sent_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trident_gateway.http.connection._BODY_GRACE_S", 0.0)
    go_on = asyncio.Event()

    @endpoint()
    async def wait(request: HttpRequest, out: AnswerSink) -> None:
        await request.body()
        out.expect_events()
        await out.send_events(b"data: 1\n\n")
        await go_on.wait()
        await out.end_events(b"data: 2\n\n")

    async def test() -> None:
        for ahead in (HEAD + b"content-length: 2\r\n\r\n", HEAD):  # a body and a head that do not come
            go_on.clear()
            async with Room(wait, settings=HASTY) as room:
                client = await room.connect()
                client.send("POST", "/v1/x", b"{}", JSON)
                await client.head()
                client.writer.write(ahead)
                await asyncio.sleep(0.5)  # longer than the timers
                go_on.set()
                assert await client.chunk() == b"data: 1\n\n"
                assert await client.chunk() == b"data: 2\n\n"
                client.close()

    run(test)


def connections_of(room: Room) -> set[Any]:
    """Return the open connections of the public port."""
    assert room._public._server is not None
    return set(room._public._server.server_state.connections)
