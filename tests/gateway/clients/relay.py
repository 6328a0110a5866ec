"""A relay between a client and the gateway that remembers what both said.

Owns the copies. Never changes a byte: a client runs through it as it would without it, and what it was answered can be
judged afterwards, whatever the client itself made of it.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import httptools


@dataclass
class Exchange:
    """A request and its answer."""

    method: str = ""
    path: str = ""
    request_headers: dict[str, str] = field(default_factory=dict)
    request_body: bytes = b""
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    is_complete: bool = False
    is_taken: bool = False

    @property
    def request(self) -> dict[str, Any]:
        """The JSON that was asked; empty where it was none."""
        try:
            asked = json.loads(self.request_body)
        except ValueError:
            asked = None
        return asked if isinstance(asked, dict) else {}

    def as_json(self) -> dict[str, Any]:
        """What `scripts/validate.py` reads."""
        return {
            "method": self.method, "path": self.path, "request": self.request, "status": self.status,
            "content_type": self.headers.get("content-type", ""), "is_complete": self.is_complete,
            "body": self.body.decode(),
        }  # fmt: skip


class _RequestReader:
    """Tells the requests in what a client sends."""

    def __init__(self) -> None:
        self.exchanges: list[Exchange] = []
        self._parser = httptools.HttpRequestParser(self)

    def feed(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_message_begin(self) -> None:
        self.exchanges.append(Exchange())

    def on_url(self, url: bytes) -> None:
        self.exchanges[-1].path += url.decode()

    def on_header(self, name: bytes, value: bytes) -> None:
        self.exchanges[-1].request_headers[name.decode().lower()] = value.decode()

    def on_headers_complete(self) -> None:
        self.exchanges[-1].method = self._parser.get_method().decode()

    def on_body(self, body: bytes) -> None:
        self.exchanges[-1].request_body += body


class _AnswerReader:
    """Tells the answers in what the gateway sends, each of which belongs to the next request."""

    def __init__(self, exchanges: list[Exchange]) -> None:
        self._exchanges = exchanges
        self._parser = httptools.HttpResponseParser(self)
        self._next = 0

    def feed(self, data: bytes) -> None:
        self._parser.feed_data(data)

    @property
    def _exchange(self) -> Exchange:
        return self._exchanges[self._next]

    def on_header(self, name: bytes, value: bytes) -> None:
        self._exchange.headers[name.decode().lower()] = value.decode()

    def on_headers_complete(self) -> None:
        self._exchange.status = self._parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        self._exchange.body += body

    def on_message_complete(self) -> None:
        self._exchange.is_complete = True
        self._next += 1


class Relay:
    """A port of 127.0.0.1 behind which another one is.

    Args:
        port: where the gateway listens.
    """

    def __init__(self, port: int) -> None:
        self._target = port
        self._readers: list[_RequestReader] = []
        self.port = 0

    @property
    def url(self) -> str:
        """The base that clients are given."""
        return f"http://127.0.0.1:{self.port}/v1"

    def take(self) -> list[Exchange]:
        """Return the exchanges that were answered since the last call, in the order of their connections."""
        found = [
            exchange
            for reader in self._readers
            for exchange in reader.exchanges
            if exchange.status and not exchange.is_taken
        ]
        for exchange in found:
            exchange.is_taken = True
        return found

    async def serve(self, started: threading.Event, stop: asyncio.Event) -> None:
        """Relay until `stop`."""
        server = await asyncio.start_server(self._relay, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        started.set()
        await stop.wait()
        server.close()

    async def _relay(self, client: asyncio.StreamReader, client_writer: asyncio.StreamWriter) -> None:
        gateway, gateway_writer = await asyncio.open_connection("127.0.0.1", self._target)
        requests = _RequestReader()
        self._readers.append(requests)
        answers = _AnswerReader(requests.exchanges)
        copies = {
            asyncio.ensure_future(_copy(client, gateway_writer, requests)),
            asyncio.ensure_future(_copy(gateway, client_writer, answers)),
        }
        await asyncio.wait(copies, return_when=asyncio.FIRST_COMPLETED)
        for copy in copies:
            copy.cancel()
        for writer in (gateway_writer, client_writer):
            writer.close()


async def _copy(source: asyncio.StreamReader, target: asyncio.StreamWriter, reader: Any) -> None:
    with suppress(ConnectionError):
        while data := await source.read(1 << 16):
            reader.feed(data)
            target.write(data)
            await target.drain()


@contextmanager
def relaying(port: int) -> Iterator[Relay]:
    """Yield a relay to this port, run by a thread."""
    relay, started, stops = Relay(port), threading.Event(), []

    def run() -> None:
        async def serve() -> None:
            stops.append((asyncio.get_running_loop(), stop := asyncio.Event()))
            await relay.serve(started, stop)

        asyncio.run(serve())

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert started.wait(60)
    try:
        yield relay
    finally:
        loop, stop = stops[0]
        loop.call_soon_threadsafe(stop.set)
        thread.join(60)
