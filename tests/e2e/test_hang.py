"""A process that is stopped and goes on: who says so meanwhile, and that nothing is lost by it.

A core that is stopped goes on being READY for Triton, and Triton answers nothing about it. Its gateway and
`trident serve` find out by the steps of the engine, each by itself.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.child_processes import tied
from tests.e2e.server import Server, get, serve, until
from tests.gateway.http.room import Client, run
from tests.gateway.process import JSON
from tests.ports import free_ports
from trident_tools.server.stubs import Stub, StubWatch

NUM_STREAMS = 2
NUM_TOKENS = 1500
BUSY_S = 13.0
#: Of the gateway: until it says that nothing should be sent.
NOT_READY_S = 15.0


def child(server: Server, word: bytes) -> int:
    """The id of the one process below `trident serve` that has a word in its command line."""
    pid = server.process.pid
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()
    (found,) = [
        int(one)
        for one in children
        if any(
            part == word or part.endswith(b"/" + word)
            for part in Path(f"/proc/{one}/cmdline").read_bytes().split(b"\0")
        )
    ]
    return found


def tritonserver(server: Server) -> int:
    """The id of its process."""
    return child(server, b"tritonserver")


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


@dataclass(frozen=True)
class Deployed:
    """A server and its gateway."""

    server: Server
    port: int
    private: int
    model: str

    def readiness(self) -> tuple[bool, bool]:
        """What the gateway and tritonserver say."""
        return probe(self.private, "/ready") == (200, "ready"), get(self.server, "/v2/health/ready") == 200


@pytest.fixture(scope="module")
def deployed(narrow_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployed]:
    """Yield both; two sequences at once, and two in the queue."""
    port, private = free_ports(2)
    ports = ("--openai-port", str(port), "--openai-private-port", str(private))
    log = tmp_path_factory.mktemp("hang") / "log"
    with serve(narrow_repository, log, *ports, "--drain-delay", "0", "--max-queue-size", "2") as server:
        until(lambda: "OpenAI's API: " in server.log.read_text(errors="replace"), 60, "the gateway is ready")
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/models", timeout=60) as reply:
            name = json.load(reply)["data"][0]["id"]
        yield Deployed(server, port, private, name)


def test_hang_of_a_core_and_of_tritonserver_is_said_in_time_and_heals_by_itself(deployed: Deployed) -> None:
    """Meanwhile no new request comes, as Triton ends itself when it cannot hand one to the core."""
    server = deployed.server
    processes = {"core": stub(server, "core").pid, "tritonserver": tritonserver(server)}

    async def comes(is_ready: bool, seconds: float, *, of_triton: bool) -> None:
        began = time.monotonic()
        while True:
            gateway, triton = await asyncio.to_thread(deployed.readiness) if of_triton else (
                await asyncio.to_thread(probe, deployed.private, "/ready") == (200, "ready"), is_ready,
            )  # fmt: skip
            if (gateway, triton) == (is_ready, is_ready):
                return
            assert time.monotonic() - began <= seconds, (gateway, triton)
            await asyncio.sleep(0.1)

    async def stop(victim: int, *, is_core: bool) -> None:
        clients = [await stream(deployed.port, deployed.model) for _ in range(NUM_STREAMS)]
        with stopped(victim):
            # Triton itself would call a stopped core ready for good; and stopped itself it says nothing.
            await comes(False, NOT_READY_S, of_triton=is_core)
            assert probe(deployed.private, "/live") == (200, "live")
        await comes(True, 60, of_triton=True)
        for client in clients:
            rest = await asyncio.wait_for(rest_of(client), 60)
            client.close()
            # A core may give a stream up of which Triton took nothing for seconds.
            assert rest.endswith(b"data: [DONE]\n\n") or (not is_core and b'"type":"server_error"' in rest)
        again = await stream(deployed.port, deployed.model)
        assert (await asyncio.wait_for(rest_of(again), 60)).endswith(b"data: [DONE]\n\n")
        again.close()

    async def test() -> None:
        await stop(processes["core"], is_core=True)
        await stop(processes["tritonserver"], is_core=False)

    run(test)
    said = server.log.read_text(errors="replace")
    assert said.count("no step of the engine for 10 s while requests wait for it") == 1
    assert said.count("The engine goes on; the server calls itself ready again.") == 1
    assert {"core": stub(server, "core").pid, "tritonserver": tritonserver(server)} == processes


def test_hang_is_not_what_a_full_queue_and_busy_cores_are_taken_for(deployed: Deployed) -> None:
    """For longer than an engine may stand still. Probes are answered within a second.

    One in twenty may be late: this process, which asks, competes for the same cores.
    """
    spin = ["nice", "-n", "5", sys.executable, "-c", "while True: pass"]
    spinning = [subprocess.Popen(tied(spin)) for _ in range(os.cpu_count() or 1)]
    took: dict[str, list[float]] = {"ready": [], "live": [], "triton": []}

    def look(name: str, url: str) -> None:
        began = time.monotonic()
        with urllib.request.urlopen(url, timeout=60) as reply:
            assert reply.status == 200
        took[name].append(time.monotonic() - began)

    async def test() -> None:
        num_refused = 0

        async def ask_on(client: Client) -> None:
            nonlocal num_refused
            body = {"model": deployed.model, "prompt": "x", "max_tokens": NUM_TOKENS, "ignore_eos": True}
            while True:
                client.send("POST", "/v1/completions", json.dumps(body).encode(), JSON)
                status = (await client.reply()).status
                num_refused += status == 503
                assert status in (200, 503)
                await asyncio.sleep(0.2)

        clients = [Client(*await asyncio.open_connection("127.0.0.1", deployed.port)) for _ in range(12)]
        asked = [asyncio.ensure_future(ask_on(client)) for client in clients]
        began = time.monotonic()
        while time.monotonic() - began < BUSY_S:
            for name, url in (
                ("ready", f"http://127.0.0.1:{deployed.private}/ready"),
                ("live", f"http://127.0.0.1:{deployed.private}/live"),
                ("triton", deployed.server.url("/v2/health/ready")),
            ):
                await asyncio.to_thread(look, name, url)
            await asyncio.sleep(0.2)
        for client, answer in zip(clients, asked, strict=True):
            client.close()
            answer.cancel()
        ends = await asyncio.gather(*asked, return_exceptions=True)
        assert not [end for end in ends if isinstance(end, AssertionError)]
        assert num_refused, "the queue was full"

    try:
        run(test)
    finally:
        for process in spinning:
            process.kill()
            process.wait()
    assert all(sorted(times)[len(times) * 19 // 20] < 1 for times in took.values()), took


def test_hang_of_trident_serve_itself_and_the_death_of_its_gateway_touch_no_server(deployed: Deployed) -> None:
    server = deployed.server
    before = tritonserver(server)
    body = {"model": deployed.model, "prompt": "x", "max_tokens": 4}

    def ask() -> int:
        request = urllib.request.Request(
            f"http://127.0.0.1:{deployed.port}/v1/completions", json.dumps(body).encode(), JSON
        )
        with urllib.request.urlopen(request, timeout=60) as reply:
            status: int = reply.status
        return status

    with stopped(server.process.pid):
        assert ask() == 200
        assert deployed.readiness() == (True, True)

    os.kill(child(server, b"gateway"), signal.SIGKILL)
    until(lambda: "the gateway ended (killed by SIGKILL)" in server.log.read_text(errors="replace"), 60, "it is said")

    def is_back() -> bool:
        try:
            return deployed.readiness() == (True, True)
        except OSError:
            return False

    until(is_back, 60, "the gateway is back")
    assert ask() == 200
    assert tritonserver(server) == before
