"""The HTTP client against servers that behave, and servers that do not."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from tests.fakes.triton_http import FakeTriton
from tests.gateway.upstream.driver import run, until
from trident_ensemble.contract.errors import ConfigError
from trident_gateway.upstream.connection import HIGH_WATER, BodyTooLargeError, ConnectError, ConnectionLostError
from trident_gateway.upstream.http_client import HttpClient

Talk = Callable[[asyncio.StreamWriter], Awaitable[None]]
OK = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
READY = "/v2/health/ready"


@asynccontextmanager
async def _server(talk: Talk) -> AsyncIterator[HttpClient]:
    """Yield a client of a server that reads one request a time and then answers as `talk` does."""
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            while True:
                await reader.readuntil(b"\r\n\r\n")
                await talk(writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    client = HttpClient(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    try:
        yield client
    finally:
        client.close()
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _get(client: HttpClient, path: str = READY) -> tuple[int, bytes]:
    return await client.fetch(b"GET", path, max_bytes=1 << 20, timeout_s=60)


@pytest.mark.parametrize(
    "url", ["https://a:1", "a:1", "http://", "http://a:1/path", "http://a:x", "http://u@a:1", "http://ä:1"]
)
def test_client_refuses_what_is_no_address_of_a_server(url: str) -> None:
    with pytest.raises(ConfigError, match="server"):
        HttpClient(url)


def test_client_reuses_a_connection_after_a_complete_answer() -> None:
    async def main() -> None:
        async with FakeTriton() as fake:
            client = HttpClient(fake.address.url)
            for _ in range(5):
                assert (await _get(client))[0] == 200
            assert fake.num_accepted == 1
            assert (len(client._idle), len(client._busy)) == (1, 0)
            client.close()
            await until(lambda: fake.num_connections == 0)

    run(main())


def test_client_never_reuses_a_connection_whose_answer_was_left() -> None:
    async def main() -> None:
        async with FakeTriton() as fake:
            client = HttpClient(fake.address.url)
            response = await client.send(b"GET", "/metrics")
            assert await response.status() == 200
            response.close()
            assert (len(client._idle), len(client._busy)) == (0, 0)
            assert (await _get(client))[0] == 200
            assert fake.num_accepted == 2
            client.close()

    run(main())


def test_client_reads_an_answer_that_comes_byte_by_byte() -> None:
    body = bytes(range(256)) * 3

    async def talk(writer: asyncio.StreamWriter) -> None:
        for byte in b"HTTP/1.1 100 Continue\r\n\r\n" + OK + b"%x\r\n%b\r\n3\r\nend\r\n0\r\n\r\n" % (len(body), body):
            writer.write(bytes([byte]))
            await writer.drain()

    async def main() -> None:
        async with _server(talk) as client:
            assert await _get(client) == (200, body + b"end")
            assert len(client._idle) == 1

    run(main())


def test_client_sends_again_when_an_unused_connection_was_closed_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server closes each connection when the second request comes, without an answer."""
    monkeypatch.setattr("trident_gateway.upstream.connection._STALE_WITHIN_S", 60.0)  # however busy the machine is
    requests = 0
    by_connection: dict[int, int] = {}

    async def talk(writer: asyncio.StreamWriter) -> None:
        nonlocal requests
        requests += 1
        by_connection[id(writer)] = by_connection.get(id(writer), 0) + 1
        if by_connection[id(writer)] == 2:
            raise ConnectionAbortedError
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    async def main() -> None:
        async with _server(talk) as client:
            for _ in range(3):
                assert await _get(client) == (200, b"")
            assert requests == 5

    run(main())


def test_client_never_sends_again_what_a_server_was_lost_over_while_it_worked() -> None:
    requests = 0

    async def talk(writer: asyncio.StreamWriter) -> None:
        nonlocal requests
        requests += 1
        if requests == 2:
            await asyncio.sleep(0.2)  # the work
            raise ConnectionAbortedError
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    async def main() -> None:
        async with _server(talk) as client:
            assert await _get(client) == (200, b"")
            with pytest.raises(ConnectionLostError):
                await _get(client)
            assert requests == 2

    run(main())


def test_client_says_that_a_request_is_lost_which_no_server_is_left_to_take_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("trident_gateway.upstream.connection._STALE_WITHIN_S", 60.0)

    async def main() -> None:
        async with FakeTriton() as fake:
            fake.is_silent = False
            client = HttpClient(fake.address.url)
            assert (await _get(client))[0] == 200
            fake.is_silent = True
            answer = asyncio.ensure_future(_get(client))
            await asyncio.sleep(0)
            await fake.kill()
            with pytest.raises(ConnectionLostError):
                await answer

    run(main())


@pytest.mark.parametrize(
    "answer",
    [
        b"", b"HTTP/1.1 200 OK\r\nContent-Le", OK + b"5\r\nab", OK + b"2\r\nab\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nab", b"HTTP/1.1 200 OK\r\n\r\nuntil the end",
        b"SSH-2.0-OpenSSH\r\n\r\n", OK + b"zz\r\n", b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 100_000,
    ],
)  # fmt: skip
def test_client_says_that_an_answer_was_cut_or_is_none(answer: bytes) -> None:
    async def talk(writer: asyncio.StreamWriter) -> None:
        writer.write(answer)
        await writer.drain()
        raise ConnectionAbortedError

    async def main() -> None:
        async with _server(talk) as client:
            with pytest.raises(ConnectionLostError):
                await _get(client)
            assert (len(client._idle), len(client._busy)) == (0, 0)

    run(main())


def test_client_drops_a_connection_on_which_something_comes_unasked() -> None:
    async def talk(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        await writer.drain()
        await is_answered.wait()
        is_answered.clear()
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nforged")

    client_: HttpClient
    is_answered = asyncio.Event()

    async def main() -> None:
        nonlocal client_
        async with _server(talk) as client_:
            assert await _get(client_) == (200, b"")
            assert len(client_._idle) == 1
            is_answered.set()
            await until(lambda: not client_._idle[0].is_reusable)
            assert await _get(client_) == (200, b"")

    run(main())


def test_client_refuses_a_body_above_the_bound() -> None:
    async def main() -> None:
        async with FakeTriton() as fake:
            client = HttpClient(fake.address.url)
            with pytest.raises(BodyTooLargeError):
                await client.fetch(b"GET", "/metrics", max_bytes=10, timeout_s=60)
            assert not client._busy
            client.close()

    run(main())


def test_client_says_that_nobody_listens() -> None:
    with socket.socket() as taken:  # bound and not listening
        taken.bind(("127.0.0.1", 0))
        with pytest.raises(ConnectError):
            run(_get(HttpClient(f"http://127.0.0.1:{taken.getsockname()[1]}")))


@pytest.mark.parametrize("connect_timeout_s", [0.0, 60.0])
def test_client_leaves_no_failure_of_a_lookup_behind(connect_timeout_s: float) -> None:
    """Also where it has given up before the lookup has ended."""
    complaints: list[object] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _loop, context: complaints.append(context))
        client = HttpClient("http://nowhere.invalid:1", connect_timeout_s)
        with pytest.raises(ConnectError, match=r"nowhere\.invalid:1: "):
            await client.connect()
        for _ in range(8):  # the lookup that was given up has ended by then
            with contextlib.suppress(OSError):
                await loop.getaddrinfo("nowhere.invalid", 1)
        gc.collect()
        await asyncio.sleep(0)

    run(main())
    assert not complaints


def test_client_connects_by_the_address_of_a_name_that_listens() -> None:
    """Of `localhost`, which is two addresses on most machines, the server has one."""

    async def main() -> None:
        async with FakeTriton() as fake:
            client = HttpClient(fake.address.url.replace("127.0.0.1", "localhost"))
            assert (await _get(client))[0] == 200
            client.close()

    run(main())


def test_client_gives_up_an_answer_that_does_not_come() -> None:
    async def main() -> None:
        async with FakeTriton() as fake:
            fake.is_silent = True
            client = HttpClient(fake.address.url)
            with pytest.raises(asyncio.TimeoutError):
                await client.fetch(b"GET", READY, max_bytes=1, timeout_s=0.05)
            assert not client._busy
            fake.is_silent = False
            await until(lambda: fake.num_connections == 0)

    run(main())


def test_client_reads_no_further_while_nobody_reads() -> None:
    """The server is held up, so that what waits here stays bounded; afterwards nothing is missing."""
    total = 64 << 20
    sent = 0

    async def talk(writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(OK)
        piece = b"x" * 65536
        while sent < total:
            writer.write(b"%x\r\n%b\r\n" % (len(piece), piece))
            await writer.drain()
            sent += len(piece)
        writer.write(b"0\r\n\r\n")

    async def main() -> None:
        async with _server(talk) as client:
            response = await client.send(b"GET", "/")
            assert await response.status() == 200
            before = -1
            while before != sent:  # until it does not move any more
                before = sent
                await asyncio.sleep(0.1)
            assert sent < total / 2
            first = await response.read()
            assert len(first) <= HIGH_WATER + (1 << 20)
            rest = await response.read_all(total)
            assert len(first) + len(rest) == total
            response.close()
            assert len(client._idle) == 1

    run(main())
