"""The HTTP room with endpoints of a test behind it, and a client that sees every byte.

Owns a real port with a real uvicorn, on the event loop of the test. Never needs a server behind it.
"""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import uvloop

from trident_gateway.api.interface import AnswerSink, Endpoint, HttpRequest
from trident_gateway.http.application import Application
from trident_gateway.http.lifecycle import Lifecycle, Phase
from trident_gateway.http.listening import Port
from trident_gateway.http.private import PrivateApplication
from trident_gateway.http.probes import Probes
from trident_gateway.observing.metrics import Metrics
from trident_gateway.observing.request_log import RequestRecord
from trident_gateway.observing.tracing import NoTracer, Tracer
from trident_gateway.settings import GatewaySettings

LIMIT_S = 60.0
JSON = {"content-type": "application/json"}


@dataclass
class Reply:
    """An answer as it came."""

    status: int
    headers: dict[str, str]
    body: bytes
    chunks: list[bytes] = field(default_factory=list)

    def error(self) -> dict[str, Any]:
        """Return the error of the body, which has these four fields and no others."""
        content = json.loads(self.body)
        assert list(content) == ["error"]
        assert sorted(content["error"]) == ["code", "message", "param", "type"]
        error: dict[str, Any] = content["error"]
        return error


class Room:
    """A public and a private port.

    Args:
        endpoints: behind the public one.
        settings: of the gateway.
        tls: of the public port.
        tracer: of requests.
    """

    def __init__(
        self,
        *endpoints: Endpoint,
        settings: GatewaySettings | None = None,
        tls: ssl.SSLContext | None = None,
        tracer: Tracer | None = None,
    ) -> None:
        self._endpoints = endpoints
        self._settings = settings or GatewaySettings()
        self._tls = tls
        self._tracer = tracer or NoTracer()
        self.records: list[RequestRecord] = []
        self.complaints: list[str] = []
        self.num_drains = 0

    async def __aenter__(self) -> Room:
        self.lifecycle = Lifecycle()
        self.metrics = Metrics(lambda: self.lifecycle.num_running, lambda: self.lifecycle.phase is not Phase.SERVING)
        self.has_model = True
        self.is_stuck = False
        probes = Probes(self.lifecycle, lambda: self.has_model, lambda: self.is_stuck)
        application = Application(
            self._endpoints,
            settings=self._settings,
            lifecycle=self.lifecycle,
            probes=probes,
            metrics=self.metrics,
            log=self.records.append,
            tracer=self._tracer,
            complain=self.complaints.append,
        )
        self._public, self._private = Port("127.0.0.1", 0, "--port"), Port("127.0.0.1", 0, "--private-port")
        await self._public.start(application, self._settings.http, self._tls)
        await self._private.start(PrivateApplication(probes, self.metrics, self._drain), self._settings.http)
        self.port, self.private_port = self._public.number, self._private.number
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await asyncio.gather(self._public.stop(), self._private.stop())

    async def connect(self, port: int | None = None) -> Client:
        """Return a connection to the public port, or to another one."""
        return Client(*await asyncio.open_connection("127.0.0.1", port or self.port))

    async def ask(
        self, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None, port: int | None = None
    ) -> Reply:
        """Return the answer to one request on a connection of its own."""
        client = await self.connect(port)
        try:
            client.send(method, path, body, headers)
            return await client.reply(method)
        finally:
            client.close()

    async def quiet(self) -> None:
        """Wait until nothing runs."""
        await asyncio.wait_for(self.lifecycle.wait_until_idle(), LIMIT_S)

    def _drain(self) -> None:
        self.num_drains += 1


class Client:
    """One connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def send(self, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None) -> None:
        """Send a request."""
        lines = [f"{method} {path} HTTP/1.1", "host: localhost"]
        lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
        if body:
            lines.append(f"content-length: {len(body)}")
        self.writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + body)

    async def reply(self, method: str = "GET") -> Reply:
        """Read an answer to its end."""
        return await asyncio.wait_for(self._reply(method), LIMIT_S)

    async def head(self) -> Reply:
        """Read the head of an answer alone."""
        lines = (await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), LIMIT_S)).decode("latin-1").split("\r\n")
        pairs = [line.split(": ", 1) for line in lines[1:] if line]
        assert len({name for name, _ in pairs}) == len(pairs), f"a header stands twice: {lines}"
        return Reply(int(lines[0].split(" ")[1]), dict(pairs), b"")

    async def chunk(self) -> bytes:
        """Read one chunk of a body; b"" at its end."""
        return await asyncio.wait_for(self._chunk(), LIMIT_S)

    async def rest(self) -> bytes:
        """Read all that comes until the connection is closed."""
        return await asyncio.wait_for(self.reader.read(), LIMIT_S)

    def close(self) -> None:
        """Hang up."""
        self.writer.close()

    async def _chunk(self) -> bytes:
        size = int(await self.reader.readline(), 16)
        data = await self.reader.readexactly(size)
        assert await self.reader.readexactly(2) == b"\r\n"
        return data

    async def _reply(self, method: str) -> Reply:
        reply = await self.head()
        if reply.headers.get("transfer-encoding") == "chunked":
            while part := await self._chunk():
                reply.chunks.append(part)
            reply.body = b"".join(reply.chunks)
        elif method != "HEAD":
            reply.body = await self.reader.readexactly(int(reply.headers["content-length"]))
        return reply


def endpoint(
    path: str = "/v1/x", method: str = "POST"
) -> Callable[[Callable[[HttpRequest, AnswerSink], Awaitable[None]]], Endpoint]:
    """Return what makes an endpoint of a handler."""
    return lambda handle: Endpoint(method, path, handle)


@endpoint()
async def echo(request: HttpRequest, out: AnswerSink) -> None:
    """Answer with the request's body."""
    await out.send_json(await request.body())


def run(test: Callable[[], Awaitable[None]]) -> None:
    """Run a test on an event loop of the kind that the gateway has."""
    uvloop.run(asyncio.wait_for(test(), 2 * LIMIT_S))


async def until(condition: Callable[[], object]) -> None:
    """Wait until something has come about."""

    async def look() -> None:
        while not condition():
            await asyncio.sleep(0.005)

    await asyncio.wait_for(look(), LIMIT_S)


def errors_of(replies: Sequence[Reply]) -> list[tuple[int, str, str | None]]:
    """Return status, type and code of each."""
    return [(reply.status, reply.error()["type"], reply.error()["code"]) for reply in replies]
