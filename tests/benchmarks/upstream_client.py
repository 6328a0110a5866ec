"""What an event costs the gateway on its way from a server: CPU time of this process, with paced streams.

`python -m tests.benchmarks.upstream_client [--streams 32] [--gap-ms 10]`

The server, a double, is a process of its own. Each round measures in turn a protocol that only counts bytes, which is
the least that anything on this machine and event loop can cost; the gateway's client, up to decoded events; and aiohttp
with the same decoding, where it is installed. The differences to the first row are what can be bettered.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from urllib.parse import urlsplit

import uvloop

from tests.child_processes import tied
from tests.ports import free_ports
from trident_gateway.settings import ServerAddress
from trident_gateway.upstream.events import EventCutter
from trident_gateway.upstream.router import Router
from trident_gateway.upstream.served_model import GenerateCall
from trident_gateway.upstream.watch_times import WatchTimes

NUM_EVENTS = 200
PATH = "/v2/models/ensemble/generate_stream"
BODY = json.dumps({"max_tokens": NUM_EVENTS, "stream": True}).encode()
Way = Callable[[], Awaitable[int]]


class _Counting(asyncio.Protocol):
    """A client that only looks for the end of its answer."""

    def __init__(self) -> None:
        self.num_events = 0
        self.ended = asyncio.get_running_loop().create_future()

    def data_received(self, data: bytes) -> None:
        self.num_events += data.count(b"data: ")
        if data.endswith(b"0\r\n\r\n"):
            self.ended.set_result(None)


async def _count(url: str) -> int:
    parts = urlsplit(url)
    assert parts.hostname
    assert parts.port
    transport, client = await asyncio.get_running_loop().create_connection(_Counting, parts.hostname, parts.port)
    head = b"POST %b HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % (PATH.encode(), len(BODY))
    transport.write(head + BODY)
    await client.ended
    transport.close()
    return client.num_events


async def _route(router: Router) -> int:
    (model,) = router.models().values()
    exchange = await router.open(GenerateCall(model, b'{"max_tokens": %d}' % NUM_EVENTS, "r", "t", streaming=True))
    num_events = 0
    while events := await exchange.read():
        num_events += len(events)
    await exchange.close()
    return num_events


async def _ask_aiohttp(url: str) -> int:
    import aiohttp  # noqa: PLC0415 (it may not be there)

    cutter, num_events = EventCutter(), 0
    async with aiohttp.ClientSession() as session, session.post(url + PATH, data=BODY) as response:
        async for piece in response.content.iter_any():
            num_events += len(cutter.feed(piece))
    return num_events


async def _measure(address: ServerAddress, num_streams: int, rounds: int) -> None:
    router = Router([address], times=WatchTimes(probe_s=60.0, probe_down_s=0.05))
    await router.start()
    while not router.is_ready:
        await asyncio.sleep(0.05)
    ways: dict[str, Way] = {
        "counts bytes": lambda: _count(address.url),
        "the gateway's client": lambda: _route(router),
    }
    if importlib.util.find_spec("aiohttp"):
        ways["aiohttp"] = lambda: _ask_aiohttp(address.url)
    costs: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            begin = time.process_time()
            counts = await asyncio.gather(*(way() for _ in range(num_streams)))
            costs[name].append((time.process_time() - begin) / sum(counts) * 1e6)
    floor = statistics.median(costs["counts bytes"])
    for name, values in costs.items():
        median = statistics.median(values)
        print(f"{name:<22} {median:6.1f} us an event, {median - floor:6.1f} above the first row")
    await router.close()


def main() -> None:
    """Show the medians of all ways."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.upstream_client", description=__doc__)
    parser.add_argument("--streams", type=int, default=32)
    parser.add_argument("--gap-ms", type=float, default=10.0, help="between the events of a stream")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    port, metrics_port = free_ports(2)
    command = [sys.executable, "-m", "tests.fakes.triton_http", str(port), str(metrics_port), str(args.gap_ms / 1000)]
    with subprocess.Popen(tied(command)) as server:
        try:
            address = ServerAddress(f"http://127.0.0.1:{port}", f"http://127.0.0.1:{metrics_port}")
            uvloop.run(_measure(address, args.streams, args.rounds))
        finally:
            server.terminate()


if __name__ == "__main__":
    main()
