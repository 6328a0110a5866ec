"""`make bench BENCH=gateway`: what the gateway costs.

Its processor time for a streamed chunk, at 32 streams of a token each 10 ms, beside that of a bare uvicorn which sends
ready chunks, in turn; what it adds to the time to the first token, request by request in turn with the server behind
it; its memory over 10,000 requests; 1000 streams that are open and silent, and what it adds beside them; these before a
server that computes nothing. Then, before the real one with the demo's model, tokens per second at 50 users through the
gateway and through Triton's own `generate_stream`, in turn. A busy machine makes processor time several times as long,
so that the ratio to the bare server says more than the time; all other figures want an idle machine.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console

from tests.benchmarks.commands import BenchmarkError, require_requests, run_trident, work_folder
from tests.benchmarks.compare import machine
from tests.child_processes import tied
from tests.e2e.build import build
from tests.e2e.server import serve
from tests.gateway.clients.gateways import RunningGateway, gateway
from tests.ports import free_ports
from trident_gateway.settings import ServerAddress
from trident_tools.load.option_values import whole_number

DEMO = Path(__file__).parents[2] / "tools" / "demo" / "checkpoint"
PARTS = ("chunk", "first", "memory", "idle", "served")
NUM_STREAMS, NUM_CHUNKS, GAP_S = 32, 400, 0.01
NUM_IDLE = 1000
USERS = 50

_TICKS = os.sysconf("SC_CLK_TCK")


def main() -> None:
    """Run and show."""
    parser = argparse.ArgumentParser(prog="make bench BENCH=gateway", description=__doc__)
    parser.add_argument("--only", choices=PARTS, help="one part alone")
    parser.add_argument("--rounds", type=whole_number(1), default=3)
    parser.add_argument("--requests", type=whole_number(100), default=10_000, help="of the part `memory`")
    parser.add_argument("--duration", type=whole_number(1), default=15, help="seconds of each run of the part `served`")
    parser.add_argument("--json", type=Path, help="write everything here too")
    args = parser.parse_args()
    console = Console()
    console.print(machine())
    outcome: dict[str, Any] = {}
    with work_folder() as work:
        for part in (args.only,) if args.only else PARTS:
            outcome[part] = _PARTS[part](work / part, args)
            console.print(f"{part:7} " + ", ".join(f"{name} {value:.4g}" for name, value in outcome[part].items()))
    if args.json:
        args.json.write_text(json.dumps(outcome, indent=2), encoding="utf-8")


@contextmanager
def _upstream(gap_s: float) -> Iterator[ServerAddress]:
    """Yield a server that computes nothing, in a process of its own."""
    port, metrics_port = free_ports(2)
    words = [sys.executable, "-m", "tests.benchmarks.gateway_upstream", str(port), str(metrics_port), str(gap_s)]
    process = subprocess.Popen(tied(words))
    try:
        yield ServerAddress(f"http://127.0.0.1:{port}", f"http://127.0.0.1:{metrics_port}")
    finally:
        process.kill()
        process.wait()


@contextmanager
def _before_nothing(folder: Path, gap_s: float) -> Iterator[tuple[ServerAddress, RunningGateway]]:
    with ExitStack() as stack:
        address = stack.enter_context(_upstream(gap_s))
        yield address, stack.enter_context(gateway(folder, [address], has_keys=False))


class Connection:
    """A kept connection that counts events and looks at nothing else."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, port: int) -> Connection:
        """Connect to a port of this machine."""
        return cls(*await asyncio.open_connection("127.0.0.1", port))

    async def ask(self, path: str, body: dict[str, Any], *, events: int | None = None) -> tuple[float, int]:
        """Return the seconds to the first event, and the number of events.

        Args:
            path: where it is asked.
            body: what is asked.
            events: leave it after so many; None reads to the end.
        """
        payload = json.dumps(body).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        head += f"Content-Length: {len(payload)}\r\n\r\n"
        began = time.perf_counter()
        self._writer.write(head.encode() + payload)
        first, count, tail = 0.0, 0, b""
        while True:
            data = await self._reader.read(1 << 16)
            if not data:
                raise ConnectionError("the connection has ended")
            found = data.count(b"data: ")
            if found and not count:
                first = time.perf_counter() - began
            count += found
            tail = (tail + data)[-7:]
            if (events is not None and count >= events) or tail.endswith(b"\r\n0\r\n\r\n"):
                return first, count

    def close(self) -> None:
        """Hang up."""
        self._writer.transport.abort()


def _port(address: ServerAddress) -> int:
    return int(address.url.rsplit(":", 1)[1])


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def _rss_mib(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


CHAT = {"model": "demo", "messages": [{"role": "user", "content": "Hello!"}], "stream": True}
DIRECT = {"text_input": "Hello!", "stream": True}


def _chunk(folder: Path, args: argparse.Namespace) -> dict[str, float]:
    """Return microseconds of the gateway's processor time for one chunk, and how many chunks came a second."""

    async def load(port: int) -> int:
        connections = [await Connection.open(port) for _ in range(NUM_STREAMS)]
        asked = {**CHAT, "max_completion_tokens": NUM_CHUNKS}
        counts = await asyncio.gather(*(one.ask("/v1/chat/completions", asked) for one in connections))
        for connection in connections:
            connection.close()
        return sum(count for _, count in counts)

    def cost(pid: int, port: int) -> tuple[float, float]:
        cpu, began = _cpu_seconds(pid), time.perf_counter()
        chunks = asyncio.run(load(port))
        return (_cpu_seconds(pid) - cpu) / chunks * 1e6, chunks / (time.perf_counter() - began)

    costs: list[tuple[float, float]] = []
    bare: list[tuple[float, float]] = []
    with _before_nothing(folder, GAP_S) as (_, running), _bare_server() as (pid, port):
        for _ in range(args.rounds + 1):
            costs.append(cost(running.process.pid, running.port))
            bare.append(cost(pid, port))
    ratio = median(own[0] / other[0] for own, other in zip(costs[1:], bare[1:], strict=True))
    return {
        "us a chunk": median(own[0] for own in costs[1:]), "bare uvicorn": median(other[0] for other in bare[1:]),
        "ratio": ratio, "chunks/s": median(own[1] for own in costs[1:]),
    }  # fmt: skip


@contextmanager
def _bare_server() -> Iterator[tuple[int, int]]:
    """Yield the process and the port of a server that sends the same chunks at the same pace."""
    (port,) = free_ports(1)
    words = [sys.executable, "-m", "tests.benchmarks.gateway_yardstick", str(port), str(NUM_CHUNKS), str(GAP_S)]
    process = subprocess.Popen(tied(words))
    try:
        while True:
            try:
                with socket.create_connection(("127.0.0.1", port), timeout=10):
                    break
            except OSError:
                if process.poll() is not None:
                    raise BenchmarkError("the bare server did not start") from None
                time.sleep(0.05)
        yield process.pid, port
    finally:
        process.kill()
        process.wait()


def _first(folder: Path, _args: argparse.Namespace) -> dict[str, float]:
    """Return the median milliseconds to the first event without and with the gateway, asked in turn."""

    with _before_nothing(folder, 0.0) as (address, running):
        asyncio.run(_in_turn(_port(address), running.port, 200))
        direct, through = asyncio.run(_in_turn(_port(address), running.port, 500))
    return {"direct ms": 1000 * median(direct), "added ms": 1000 * (median(through) - median(direct))}


async def _in_turn(direct_port: int, port: int, count: int) -> tuple[list[float], list[float]]:
    """Return the seconds to the first event of requests to the server, and through the gateway, one after another."""
    direct, through = await Connection.open(direct_port), await Connection.open(port)
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(count):
        times[0].append((await direct.ask("/v2/models/ensemble/generate_stream", {**DIRECT, "max_tokens": 1}))[0])
        times[1].append((await through.ask("/v1/chat/completions", {**CHAT, "max_completion_tokens": 1}))[0])
    return times


def _memory(folder: Path, args: argparse.Namespace) -> dict[str, float]:
    """Return the gateway's memory after a tenth of the requests, and after all of them."""
    tenth = args.requests // 10

    async def load(port: int, count: int) -> None:
        left = iter(range(count))

        async def user() -> None:
            connection = await Connection.open(port)
            for index in left:
                asked = {**CHAT, "max_completion_tokens": 1 + index % 8, "n": 1 + index % 3}
                await connection.ask("/v1/chat/completions", asked)
            connection.close()

        await asyncio.gather(*(user() for _ in range(16)))

    with _before_nothing(folder, 0.0) as (_, running):
        sizes = []
        for _ in range(10):
            asyncio.run(load(running.port, tenth))
            sizes.append(_rss_mib(running.process.pid))
    return {f"MiB after {tenth}": sizes[0], f"after {5 * tenth}": sizes[4], f"after {10 * tenth}": sizes[9]}


def _idle(folder: Path, _args: argparse.Namespace) -> dict[str, float]:
    """Return what 1000 silent streams cost in memory, and what the gateway adds to a first token beside them."""
    silent = {**CHAT, "max_completion_tokens": 4, "ignore_eos": True}

    async def run(direct_port: int, port: int, pid: int) -> dict[str, float]:
        before = _rss_mib(pid)
        connections = [await Connection.open(port) for _ in range(NUM_IDLE)]
        await asyncio.gather(*(one.ask("/v1/chat/completions", silent, events=1) for one in connections))
        held = _rss_mib(pid)
        cpu, began = _cpu_seconds(pid), time.perf_counter()
        await asyncio.sleep(2)
        share = (_cpu_seconds(pid) - cpu) / (time.perf_counter() - began)
        direct, through = await _in_turn(direct_port, port, 200)
        for connection in connections:
            connection.close()
        return {
            "open": NUM_IDLE, "KiB each": 1024 * (held - before) / NUM_IDLE, "cores while silent": share,
            "direct ms": 1000 * median(direct), "added ms": 1000 * (median(through) - median(direct)),
        }  # fmt: skip

    with _before_nothing(folder, 0.0) as (address, running):
        return asyncio.run(run(_port(address), running.port, running.process.pid))


def _served(folder: Path, args: argparse.Namespace) -> dict[str, float]:
    """Return tokens a second through both doors of the real server, and the median ratio of the rounds."""
    folder.mkdir()
    repository = build(DEMO, folder / "repository", "--max-num-seqs", "64", "--kv-cache", "65536t")
    rates: dict[str, list[float]] = {"generate_stream": [], "openai": []}
    firsts: dict[str, list[float]] = {"generate_stream": [], "openai": []}
    with serve(repository, folder / "log") as server:
        address = ServerAddress(server.url(""), f"http://{server.host}:{server.metrics_port}")
        with gateway(folder / "gateway", [address], has_keys=False) as running:
            urls = {"generate_stream": server.url(""), "openai": running.url}
            for turn in range(args.rounds):
                for protocol in sorted(urls, reverse=bool(turn % 2)):
                    words = [
                        "--protocol", protocol, "--url", urls[protocol], "--users", str(USERS), "--ramp", "4",
                        "--duration", str(args.duration), "--input-tokens", "32", "--output-tokens", "64",
                        "--tokenizer", str(DEMO), "--metrics-url", f"{address.metrics_url}/metrics",
                    ]  # fmt: skip
                    stages = run_trident("bench", words, folder / "bench.json")
                    require_requests(stages)
                    rates[protocol].append(stages[0]["output_token_throughput"])
                    firsts[protocol].append(stages[0]["metrics"]["time_to_first_token"]["p50"])
    ratios = [through / direct for direct, through in zip(rates["generate_stream"], rates["openai"], strict=True)]
    return {
        "generate_stream tokens/s": median(rates["generate_stream"]), "gateway tokens/s": median(rates["openai"]),
        "ratio": median(ratios), "generate_stream TTFT p50 ms": median(firsts["generate_stream"]),
        "gateway TTFT p50 ms": median(firsts["openai"]),
    }  # fmt: skip


_PARTS = {"chunk": _chunk, "first": _first, "memory": _memory, "idle": _idle, "served": _served}


if __name__ == "__main__":
    main()
