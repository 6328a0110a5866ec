"""A process that is stopped and goes on: who says so meanwhile, and that nothing is lost by it.

A core that is stopped goes on being READY for Triton, and Triton answers nothing about it. Its gateway and
`trident serve` find out by the steps of the engine, each by itself.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.e2e.server import Server, get, serve, until
from tests.gateway.http.room import Client, run
from tests.gateway.process import JSON
from tests.ports import free_ports
from trident_tools.server.stubs import Stub, StubWatch

NUM_STREAMS = 2
NUM_TOKENS = 3000
#: Of the gateway: until it says that nothing should be sent.
NOT_READY_S = 15.0


def tritonserver(server: Server) -> int:
    """The id of its process."""
    pid = server.process.pid
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split():
        if b"tritonserver" in Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0")[0]:
            return int(child)
    raise AssertionError(f"no tritonserver below {pid}")


def stub(server: Server, model: str) -> Stub:
    """The process of a model."""
    watch = StubWatch(tritonserver(server))
    watch.discover()
    return next(one for one in watch.living() if one.model == model and one.serves)


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    """Stop a process, and let it go on."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def probe(port: int, path: str) -> tuple[int, str]:
    """Status and word of a probe."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=60) as reply:
            return reply.status, json.load(reply)["status"]
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)["status"]


async def stream(port: int, name: str) -> Client:
    """Begin a stream; return it when its first event has come."""
    client = Client(*await asyncio.open_connection("127.0.0.1", port))
    body = {
        "model": name, "messages": [{"role": "user", "content": "hi"}], "max_completion_tokens": NUM_TOKENS,
        "ignore_eos": True, "stream": True,
    }  # fmt: skip
    client.send("POST", "/v1/chat/completions", json.dumps(body).encode(), JSON)
    assert (await client.head()).status == 200
    await client.chunk()
    return client


async def rest_of(client: Client) -> bytes:
    parts = []
    while part := await client.chunk():
        parts.append(part)
    return b"".join(parts)


def test_hang_of_a_core_and_of_tritonserver_is_said_in_time_and_heals_by_itself(
    narrow_repository: Path, tmp_path: Path
) -> None:
    port, private = free_ports(2)
    ports = ("--openai-port", str(port), "--openai-private-port", str(private))
    with serve(narrow_repository, tmp_path / "log", *ports, "--drain-delay", "0") as server:
        until(lambda: "OpenAI's API: " in server.log.read_text(errors="replace"), 60, "the gateway is ready")
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/models", timeout=60) as reply:
            name = json.load(reply)["data"][0]["id"]
        processes = {"core": stub(server, "core").pid, "tritonserver": tritonserver(server)}

        async def streams_through(victim: int, *, is_core: bool) -> None:
            clients = [await stream(port, name) for _ in range(NUM_STREAMS)]
            with stopped(victim):
                began = time.monotonic()
                while await asyncio.to_thread(probe, private, "/ready") == (200, "ready"):
                    await asyncio.sleep(0.1)
                assert time.monotonic() - began <= NOT_READY_S
                if is_core:
                    # Triton itself would be ready for good.
                    while await asyncio.to_thread(get, server, "/v2/health/ready") == 200:
                        assert time.monotonic() - began <= NOT_READY_S
                        await asyncio.sleep(0.1)
                assert probe(private, "/live") == (200, "live")
            began = time.monotonic()
            while await asyncio.to_thread(probe, private, "/ready") != (200, "ready"):
                assert time.monotonic() - began < 60
                await asyncio.sleep(0.1)
            while await asyncio.to_thread(get, server, "/v2/health/ready") != 200:
                assert time.monotonic() - began < 60
                await asyncio.sleep(0.1)
            for client in clients:
                assert (await asyncio.wait_for(rest_of(client), 60)).endswith(b"data: [DONE]\n\n")
                client.close()

        async def test() -> None:
            await streams_through(processes["core"], is_core=True)
            await streams_through(processes["tritonserver"], is_core=False)

        run(test)
        said = server.log.read_text(errors="replace")
        assert said.count("no step of the engine for 10 s while requests wait for it") == 1
        assert said.count("The engine goes on; the server calls itself ready again.") == 1
        assert {"core": stub(server, "core").pid, "tritonserver": tritonserver(server)} == processes
