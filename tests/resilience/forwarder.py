"""A balancer at layer 4, as kube-proxy is: it knows addresses and connections, nothing of HTTP, and learns late.

Owns the list of targets. Never tries a second target for a connection, and never looks whether a target is well: it
sends what it is told to those that it knows.
"""

from __future__ import annotations

import asyncio
from types import TracebackType


class Forwarder:
    """A port of 127.0.0.1 whose connections go to each target in turn.

    Args:
        targets: ports of 127.0.0.1.
    """

    def __init__(self, *targets: int) -> None:
        self.targets = list(targets)
        self.port = 0
        #: Connections that a target has refused.
        self.num_refused = 0
        self._next = 0
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Forwarder:
        self._server = await asyncio.start_server(self._forward, "127.0.0.1", 0, backlog=1024)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._server.close()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self._next += 1
        target = self.targets[self._next % len(self.targets)]
        try:
            there_reader, there_writer = await asyncio.open_connection("127.0.0.1", target)
        except OSError:
            self.num_refused += 1
            writer.transport.abort()
            return
        copies = [
            asyncio.ensure_future(_copy(reader, there_writer)),
            asyncio.ensure_future(_copy(there_reader, writer)),
        ]
        try:
            await asyncio.wait(copies, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            pass
        finally:
            for copy in copies:
                copy.cancel()
            for one in (there_writer, writer):
                one.close()


async def _copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    try:
        while data := await source.read(1 << 16):
            target.write(data)
            await target.drain()
    except ConnectionError:
        target.transport.abort()
