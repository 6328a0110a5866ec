"""What HAProxy is told when it asks a gateway for its weight: by the line, and by a real HAProxy."""

from __future__ import annotations

import asyncio
import csv
import io
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.child_processes import tied
from tests.ports import free_ports
from tests.programs import find, needs
from trident_ensemble.contract.errors import ServerError
from trident_gateway.http.agent import AgentPort, agent_line

LIMIT_S = 30.0


@pytest.mark.parametrize(
    ("readiness", "fullness", "line"),
    [
        ((200, "ready"), 0.0, b"ready up 100%\n"),
        ((200, "ready"), 0.25, b"ready up 75%\n"),
        ((200, "ready"), 1.0, b"ready up 1%\n"),  # nothing would mean that it is to be left alone
        ((503, "draining"), 0.0, b"drain\n"),
        ((503, "no_model"), 0.0, b"down\n"),
    ],
)
def test_agent_line_is_in_the_words_of_haproxy(readiness: tuple[int, str], fullness: float, line: bytes) -> None:
    assert agent_line(readiness, fullness) == line


@asynccontextmanager
async def _agent(port: int, line: Callable[[], bytes]) -> AsyncIterator[None]:
    agent = AgentPort("127.0.0.1", port)
    await agent.start(line)
    try:
        yield
    finally:
        await agent.stop()


def test_agent_answers_each_connection_with_the_line_of_that_moment() -> None:
    async def main() -> None:
        (port,) = free_ports(1)
        lines = iter([b"ready up 75%\n", b"drain\n"])
        async with _agent(port, lambda: next(lines)):
            for expected in (b"ready up 75%\n", b"drain\n"):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                assert await reader.read() == expected
                writer.close()
            with pytest.raises(ServerError, match=f"--agent-port {port}: cannot listen"):
                AgentPort("127.0.0.1", port)
        AgentPort("127.0.0.1", port)._socket.close()

    asyncio.run(asyncio.wait_for(main(), LIMIT_S))


CONFIG = """
global
    stats socket {socket} level admin
defaults
    mode http
    timeout connect 1s
    timeout client 1s
    timeout server 1s
backend gateways
    server one 127.0.0.1:{port} weight 200 check agent-check agent-port {agent} agent-inter 100ms inter 100ms
"""


@needs("haproxy", "haproxy")
def test_agent_moves_the_weight_of_a_gateway_in_haproxy(tmp_path: Path) -> None:
    """Down to none while it drains, and up again when another one is there in its place."""

    async def main() -> None:
        port, agent = free_ports(2)
        said = [b""]
        configuration, stats = tmp_path / "haproxy.cfg", tmp_path / "stats"
        configuration.write_text(CONFIG.format(socket=stats, port=port, agent=agent), encoding="utf-8")
        listening = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", port)
        async with listening, _agent(agent, lambda: said[0]):
            said[0] = agent_line((200, "ready"), 0.25)
            proxy = await asyncio.create_subprocess_exec(*tied([str(find("haproxy")), "-db", "-f", str(configuration)]))
            try:
                await _until_shown(stats, "UP", 150)
                said[0] = agent_line((200, "ready"), 0.5)
                await _until_shown(stats, "UP", 100)
                said[0] = agent_line((503, "draining"), 0.5)
                await _until_shown(stats, "DRAIN", None)
                said[0] = agent_line((200, "ready"), 0.0)
                await _until_shown(stats, "UP", 200)
                said[0] = agent_line((503, "no_model"), 0.0)
                await _until_shown(stats, "DOWN", None)
                said[0] = agent_line((200, "ready"), 0.0)
                await _until_shown(stats, "UP", 200)
            finally:
                proxy.kill()
                await proxy.wait()

    asyncio.run(asyncio.wait_for(main(), LIMIT_S))


async def _until_shown(stats: Path, status: str, weight: int | None) -> None:
    while True:
        try:
            reader, writer = await asyncio.open_unix_connection(str(stats))
        except OSError:
            await asyncio.sleep(0.05)
            continue
        writer.write(b"show stat gateways 4 -1\n")
        text = (await reader.read()).decode().removeprefix("# ")
        writer.close()
        row = next(iter(csv.DictReader(io.StringIO(text))))
        if row["status"].startswith(status) and weight in (None, int(row["weight"])):
            return
        await asyncio.sleep(0.05)
