"""Clients that repeat nothing and remember everything: what was asked, and what became of it.

Owns the clients' connections, which are kept and used again as those of HTTP libraries are. Never repeats a request:
what fails has failed.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

from tests.gateway.http.room import Client, Reply
from tests.gateway.process import JSON

PATH = "/v1/completions"


def body(*, stream: bool, max_tokens: int, model: str = "demo") -> bytes:
    """Return the body of a request for a completion of so many tokens."""
    fields = {"model": model, "prompt": "Once", "stream": stream, "max_tokens": max_tokens, "ignore_eos": True}
    return json.dumps(fields).encode()


class AnyCaseClient(Client):
    """A connection on which headers may be written as each balancer likes; their names come in lower case."""

    async def head(self) -> Reply:
        reply = await super().head()
        reply.headers = {name.lower(): value for name, value in reply.headers.items()}
        return reply


async def connect(port: int) -> AnyCaseClient:
    """Return a connection to a port of 127.0.0.1."""
    return AnyCaseClient(*await asyncio.open_connection("127.0.0.1", port))


class KeepingClient:
    """A client with at most one connection, which it keeps for as long as the other end does.

    Args:
        port: of 127.0.0.1.
        headers: of every request.
    """

    def __init__(self, port: int, headers: dict[str, str] | None = None) -> None:
        self._port = port
        self._headers = {**JSON, **(headers or {})}
        self._client: Client | None = None

    async def ask(self, content: bytes) -> tuple[int, bytes]:
        """Return status and body of the answer to one request, the whole of it.

        Raises:
            OSError: the connection was refused or lost.
            EOFError: it ended before the answer did.
        """
        client = await self._connection()
        client.send("POST", PATH, content, self._headers)
        try:
            reply = await client.reply()
        except BaseException:
            self.close()
            raise
        if reply.headers.get("connection", "").lower() == "close":
            self.close()
        return reply.status, reply.body

    def close(self) -> None:
        """Hang up."""
        if self._client is not None:
            self._client.close()
            self._client = None

    async def _connection(self) -> Client:
        # A connection that the other end has closed is not used, as far as can be known.
        if self._client is not None and self._client.reader.at_eof():
            self.close()
        if self._client is None:
            self._client = await connect(self._port)
        return self._client


class Load:
    """Plain requests and streams of many clients, until it is told to end.

    Args:
        port: where they are sent.
        headers: of every request.
    """

    def __init__(self, port: int, headers: dict[str, str] | None = None) -> None:
        self._port = port
        self._headers = headers
        self._is_over = False
        self._tasks: list[asyncio.Task[None]] = []
        #: What became of the requests: `plain` or `stream`, and `answered` or why not.
        self.outcomes: Counter[tuple[str, str]] = Counter()
        #: Seconds that each request took that was answered.
        self.durations: list[float] = []

    @property
    def num_answered(self) -> int:
        """Number of requests that had their whole answer."""
        return sum(count for (_, outcome), count in self.outcomes.items() if outcome == "answered")

    @property
    def lost(self) -> dict[tuple[str, str], int]:
        """The other ones."""
        return {key: count for key, count in self.outcomes.items() if key[1] != "answered"}

    def begin(self, num_clients: int, *, stream: bool, max_tokens: int, every_s: float, model: str = "demo") -> None:
        """Let clients begin, each of which asks again and again, at most once in `every_s`."""
        content = body(stream=stream, max_tokens=max_tokens, model=model)
        for number in range(num_clients):
            delay_s = every_s * number / num_clients
            self._tasks.append(asyncio.ensure_future(self._run(content, delay_s, every_s, stream=stream)))

    async def end(self) -> None:
        """Let every client finish what it has begun."""
        self._is_over = True
        await asyncio.gather(*self._tasks)

    def cancel(self) -> None:
        """Let every client hang up at once."""
        self._is_over = True
        for task in self._tasks:
            task.cancel()

    async def _run(self, content: bytes, delay_s: float, every_s: float, *, stream: bool) -> None:
        client = KeepingClient(self._port, self._headers)
        due = time.monotonic() + delay_s
        try:
            while not self._is_over:
                await asyncio.sleep(max(0.0, due - time.monotonic()))
                began = time.monotonic()
                outcome = await self._ask(client, content, stream=stream)
                self.outcomes["stream" if stream else "plain", outcome] += 1
                if outcome == "answered":
                    self.durations.append(time.monotonic() - began)
                due = max(due + every_s, time.monotonic())
        finally:
            client.close()

    async def _ask(self, client: KeepingClient, content: bytes, *, stream: bool) -> str:
        try:
            status, answer = await client.ask(content)
        except (OSError, EOFError, ValueError) as error:
            client.close()
            return type(error).__name__
        if status != 200:
            return f"{status} {_code(answer)}"
        if stream and not answer.endswith(b"data: [DONE]\n\n"):
            return f"cut: {_code(answer.split(b'data: ')[-1])}"
        return "answered"


@asynccontextmanager
async def loading(port: int, headers: dict[str, str] | None = None) -> AsyncIterator[Load]:
    """Yield a load on a port, and let nothing of it be left."""
    load = Load(port, headers)
    try:
        yield load
    finally:
        load.cancel()
        with suppress(asyncio.CancelledError):
            await asyncio.gather(*load._tasks, return_exceptions=True)


def _code(answer: bytes) -> str:
    try:
        error: dict[str, Any] = json.loads(answer)["error"]
    except (ValueError, KeyError, TypeError):
        return "?"
    return str(error.get("code") or error.get("type"))
