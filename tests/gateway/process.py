"""The real process of a gateway, in front of doubles of servers.

Owns its start, its ports and its output. Never a GPU, an engine or a model.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.child_processes import tied
from tests.fakes.triton_http import FakeTriton
from tests.gateway.http.room import LIMIT_S, Client, Reply
from tests.ports import free_ports

ROOT = Path(__file__).parents[2]
JSON = {"content-type": "application/json"}


class GatewayProcess:
    """`trident gateway`, ready when the context is entered.

    Args:
        fakes: the servers behind it, which have started.
        options: further options.
        environment: further variables.
    """

    def __init__(self, *fakes: FakeTriton, options: tuple[str, ...] = (), **environment: str) -> None:
        self._fakes = fakes
        self._options = options
        self._environment = environment
        self.port, self.private_port = free_ports(2)
        self.output = b""
        self.errors = b""

    async def __aenter__(self) -> GatewayProcess:
        servers = [word for fake in self._fakes for word in ("--server", fake.address.url)]
        metrics = [word for fake in self._fakes for word in ("--metrics-url", fake.address.metrics_url)]
        command = [
            sys.executable, "-m", "trident_tools.main", "gateway", *servers, *metrics,
            "--port", str(self.port), "--private-port", str(self.private_port), *self._options,
        ]  # fmt: skip
        self.process = await asyncio.create_subprocess_exec(
            *tied(command),
            cwd=ROOT,
            env={**os.environ, **self._environment},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        self._readers = asyncio.gather(
            self._keep("output", self.process.stdout), self._keep("errors", self.process.stderr)
        )
        await asyncio.wait_for(self._wait_until_ready(), LIMIT_S)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.process.returncode is None:
            self.process.kill()
        await asyncio.wait_for(self.process.wait(), LIMIT_S)
        await asyncio.wait_for(self._readers, LIMIT_S)

    def signal(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Send a signal."""
        self.process.send_signal(number)

    async def status(self) -> int:
        """Wait for the end and return the exit status."""
        return await asyncio.wait_for(self.process.wait(), LIMIT_S)

    async def connect(self) -> Client:
        """Return a connection to the public port."""
        return Client(*await asyncio.open_connection("127.0.0.1", self.port))

    async def ask(
        self,
        path: str,
        body: dict[str, Any] | None = None,
        headers: dict[str, str] | None = None,
        *,
        private: bool = False,
    ) -> Reply:
        """Return the answer to a request on a connection of its own: POST where there is a body, else GET."""
        port = self.private_port if private else self.port
        client = Client(*await asyncio.open_connection("127.0.0.1", port))
        try:
            if body is None:
                client.send("GET", path, headers=headers)
            else:
                client.send("POST", path, json.dumps(body).encode(), {**JSON, **(headers or {})})
            return await client.reply()
        finally:
            client.close()

    def records(self) -> list[dict[str, Any]]:
        """Return the lines of the request log so far."""
        return [json.loads(line) for line in self.output.splitlines() if line.startswith(b"{")]

    async def _keep(self, name: str, stream: asyncio.StreamReader) -> None:
        while part := await stream.read(1 << 16):
            setattr(self, name, getattr(self, name) + part)

    async def _wait_until_ready(self) -> None:
        while True:
            assert self.process.returncode is None, self.errors.decode()
            try:
                if (await self.ask("/ready", private=True)).status == 200:
                    return
            except OSError:
                pass
            await asyncio.sleep(0.02)


def completion(**fields: Any) -> dict[str, Any]:
    """Return the body of a request for a completion."""
    return {"model": "demo", "prompt": "Once", **fields}
