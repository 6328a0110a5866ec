"""A machine that is gone, as the network shows it: nothing comes back, not even a refusal.

The server is in a network namespace of its own, whose cable is pulled.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random

import pytest

from tests.child_processes import tied
from tests.fakes.triton_http import FakeTriton, Script, tokens
from tests.gateway.upstream.driver import ask, make_call, read_out, run, until
from tests.programs import find, needs
from trident_gateway.errors import UpstreamLostError
from trident_gateway.settings import ServerAddress
from trident_gateway.upstream.router import Router

pytestmark = [
    needs("ip", "iproute2"),
    pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces are made by root"),
]

HERE, THERE = "198.18.77.1", "198.18.77.2"
PORT, METRICS_PORT = 8000, 8002


async def _ip(*words: str) -> None:
    process = await asyncio.create_subprocess_exec(str(find("ip")), *words, stderr=subprocess.PIPE)
    _, errors = await process.communicate()
    if process.returncode:
        pytest.skip(f"ip {' '.join(words)}: {errors.decode().strip()}")


@asynccontextmanager
async def _far_machine() -> AsyncIterator[str]:
    """Yield the name of a cable at whose other end a server is."""
    space, cable = f"trident-{os.getpid()}", f"tri{os.getpid() % 10**7}"
    await _ip("netns", "add", space)
    server = None
    try:
        await _ip("link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", space)
        await _ip("addr", "add", f"{HERE}/30", "dev", cable)
        await _ip("link", "set", cable, "up")
        await _ip("-n", space, "addr", "add", f"{THERE}/30", "dev", "eth0")
        await _ip("-n", space, "link", "set", "eth0", "up")
        command = [str(find("ip")), "netns", "exec", space, sys.executable, "-m", __name__]
        server = await asyncio.create_subprocess_exec(*tied(command), cwd=Path(__file__).parents[2])
        yield cable
    finally:
        if server is not None:
            server.kill()
            await server.wait()
        for words in (("link", "del", cable), ("netns", "del", space)):
            process = await asyncio.create_subprocess_exec(str(find("ip")), *words, stderr=subprocess.DEVNULL)
            await process.wait()


def test_gateway_ends_streams_of_a_lost_machine_and_makes_its_other_calls_elsewhere() -> None:
    """Within the upstream timeout; and no new call goes there after its probes have failed."""

    async def main() -> None:
        far = ServerAddress(f"http://{THERE}:{PORT}", f"http://{THERE}:{METRICS_PORT}")
        async with _far_machine() as cable, FakeTriton() as near:
            near.is_ready = False
            router = Router([far, near.address], draw=Random(1))  # noqa: S311
            await router.start()
            try:
                await until(lambda: router.is_ready)
                stream = await router.open(make_call(router))
                waiting = asyncio.ensure_future(ask(router, seed=1))
                await until(lambda: router.status()[0].num_in_flight == 2)
                near.is_ready = True
                await until(lambda: all(status.is_ready for status in router.status()))
                await _ip("link", "set", cable, "down")
                begin = time.monotonic()
                await until(lambda: not router.status()[0].is_ready)
                assert time.monotonic() - begin < 15
                for _ in range(20):
                    assert await ask(router) == " t0 t1 t2 t3"
                with pytest.raises(UpstreamLostError):
                    await read_out(stream)
                assert await waiting == " t0 t1 t2 t3"
                assert time.monotonic() - begin < 40
                await stream.close()
            finally:
                await router.close()

    run(main())


async def _serve() -> None:
    """Begin every answer but those with a seed, and end none."""

    def answer(body: dict[str, object]) -> Script:
        return Script(tokens(body).events, hang_after=0 if "seed" in body else 1)

    async with FakeTriton(answer=answer, host=THERE, port=PORT, metrics_port=METRICS_PORT):
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_serve())
