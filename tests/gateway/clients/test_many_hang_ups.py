"""A thousand clients who leave, in every way, and what is left of them: nothing."""

from __future__ import annotations

import asyncio
import json
import random
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.triton_http import FakeTriton, Script, on_thread, tokens
from tests.gateway.clients.answers import CARD
from tests.gateway.clients.gateways import RunningGateway, gateway, make_key

pytestmark = pytest.mark.slow

NUM_HANG_UPS = 1000
AT_ONCE = 40
#: Of the key. A place is free again a moment after its client has left.
PLACES = 80
MAX_TOKENS = 100
#: Less than 1000 requests would hold if they held what they asked for.
TOKENS_A_MINUTE = 60_000
SECONDS = 120


def paced(request: dict[str, Any]) -> Script:
    """Answer a token each 5 ms, as long as it is wanted."""
    script = tokens(request)
    script.gap_s = 0.005
    return script


def request_of(key: str, *, stream: bool, max_tokens: int = MAX_TOKENS) -> bytes:
    """Return the bytes of a request."""
    asked = {"messages": [{"role": "user", "content": "The ferry?"}], "max_completion_tokens": max_tokens}
    body = json.dumps({"model": CARD.name, "stream": stream, **asked}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\n"
    return f"{head}Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


async def leave(port: int, key: str, chance: random.Random) -> bool:
    """Ask and hang up: within the request, before an answer, in the middle of one; return whether a limit refused."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    asked, kind = request_of(key, stream=chance.random() < 0.7), chance.random()
    writer.write(asked[: chance.randrange(len(asked))] if kind < 0.1 else asked)
    refused = False
    if kind < 0.3:
        await writer.drain()
    elif kind < 0.5:
        await asyncio.sleep(chance.random() * 0.05)
    else:
        refused = b" 429 " in await asyncio.wait_for(reader.readline(), 30)
        await asyncio.sleep(chance.random() * 0.05)
    if chance.random() < 0.5:
        writer.transport.abort()
    else:
        writer.close()
    return refused


async def leave_all(running: RunningGateway, key: str) -> int:
    """Let them all leave; return how many a limit had refused."""
    chance, left = random.Random(20261129), iter(range(NUM_HANG_UPS))  # noqa: S311

    async def user() -> int:
        return sum([await leave(running.port, key, chance) for _ in left])

    return sum(await asyncio.gather(*(user() for _ in range(AT_ONCE))))


async def ask(port: int, key: str) -> bytes:
    """Return the head of an answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request_of(key, stream=False, max_tokens=2))
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 60)
    writer.close()
    return head


async def until_nothing_runs(running: RunningGateway, triton: FakeTriton) -> None:
    """Wait until neither the gateway nor the server runs anything."""
    while triton.running or running.metric("trident_gateway_inflight"):
        await asyncio.sleep(0.05)


def test_many_hang_ups_leave_no_slot_no_reservation_and_no_sequence(tmp_path: Path) -> None:
    triton = FakeTriton(CARD, answer=paced)
    make_key(tmp_path / "keys.json", "carol")
    key = make_key(tmp_path / "keys.json", "dave", "--concurrency", str(PLACES), "--output-tpm", str(TOKENS_A_MINUTE))
    with on_thread(triton), gateway(tmp_path, [triton.address]) as running:
        num_refused = asyncio.run(asyncio.wait_for(leave_all(running, key), SECONDS))
        asyncio.run(asyncio.wait_for(until_nothing_runs(running, triton), 30))

        async def ask_all() -> list[bytes]:
            return await asyncio.gather(*(ask(running.port, key) for _ in range(PLACES)))

        heads = asyncio.run(ask_all())
        gone = running.metric("trident_gateway_client_gone_total")
    assert [head.split(b" ", 2)[1] for head in heads] == [b"200"] * PLACES, "every place is free again"
    assert num_refused < NUM_HANG_UPS / 10
    assert gone > NUM_HANG_UPS / 2
    assert len(triton.requests) > NUM_HANG_UPS / 3
    assert triton.ended["left"] + triton.ended["cancelled"] > NUM_HANG_UPS / 5
    # A plain answer comes whole, so who leaves after its first line has had all of it.
    said = sum(one.num_sent * (1 if one.body["stream"] else MAX_TOKENS) for one in triton.requests)
    assert said < NUM_HANG_UPS * MAX_TOKENS / 3
    lines = (line.split(b": ") for head in heads for line in head.split(b"\r\n"))
    remaining = min(int(line[1]) for line in lines if line[0] == b"x-ratelimit-remaining-tokens")
    assert remaining > TOKENS_A_MINUTE - said - PLACES * 2, "what was held and not said was given back"
