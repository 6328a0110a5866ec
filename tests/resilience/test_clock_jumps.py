"""A clock of the machine that jumps, both ways: what runs goes on, and keys are valid by the clock as it is now."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from tests.fakes.triton_http import FakeTriton, Script, tokens
from tests.gateway.http.room import run
from tests.gateway.process import JSON, GatewayProcess, completion
from tests.programs import needs
from tests.resilience.load import PATH, body, connect
from trident_tools import main

#: Debian's; it shifts the wall clock of a process by what stands in a file, which it reads at each look at the clock.
LIBRARY = next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), None)
LIMIT = 20


def slow_streams(request: dict[str, Any]) -> Script:
    """Answer streams with a token each tenth of a second, and the rest at once."""
    script = tokens(request)
    script.gap_s = 0.1 if request.get("stream") else 0.0
    return script


def make_key(path: Path, capsys: object, *options: str) -> dict[str, str]:
    """Make a key; return the header that shows it."""
    assert main.main(["keys", "create", "--keys", str(path), "--tenant", "t", *options]) == 0
    secret = next(word for word in capsys.readouterr().out.split() if word.startswith("sk-"))  # type: ignore[attr-defined]
    return {"authorization": f"Bearer {secret}"}


@needs("faketime", "faketime")
def test_clock_jumps_cut_nothing_and_open_no_limit(tmp_path: Path, capsys: object) -> None:
    path, clock = tmp_path / "keys.json", tmp_path / "clock"
    limited = make_key(path, capsys, "--rpm", str(LIMIT))
    fleeting = make_key(path, capsys, "--expires", "1h")
    clock.write_text("+0")
    fake_clock = {
        "LD_PRELOAD": str(LIBRARY), "FAKETIME_TIMESTAMP_FILE": str(clock), "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1", "FAKETIME_DONT_RESET": "1",
    }  # fmt: skip

    async def test() -> None:
        options = ("--keys", str(path), "--drain-delay", "0")
        async with (
            FakeTriton(answer=slow_streams) as fake,
            GatewayProcess(fake, options=options, **fake_clock) as gateway,
        ):

            async def status(key: dict[str, str]) -> int:
                return (await gateway.ask(PATH, completion(max_tokens=1), key)).status

            async def granted() -> int:
                """Return how many requests pass until one is refused."""
                number = 0
                while (got := await status(limited)) == 200:
                    number += 1
                assert got == 429
                return number

            began = asyncio.get_running_loop().time()
            stream = await connect(gateway.port)
            stream.send("POST", PATH, body(stream=True, max_tokens=80), {**JSON, **fleeting})
            assert (await stream.head()).status == 200
            assert await granted() >= LIMIT
            assert await status(fleeting) == 200

            clock.write_text("-86400")
            # Nothing flows into a limit by a clock that goes back, and it does not stay shut either.
            left = await granted()
            assert left <= 1 + (asyncio.get_running_loop().time() - began) * LIMIT / 60
            assert (await gateway.ask("/ready", private=True)).status == 200
            while await status(limited) != 200:
                await asyncio.sleep(0.1)

            clock.write_text("+7200")
            assert await status(fleeting) == 401, "it has expired"
            # A limit is full again, as after two hours, and no more than full.
            seconds = asyncio.get_running_loop().time() - began
            assert LIMIT <= await granted() <= LIMIT + 1 + seconds * LIMIT / 60
            assert (await gateway.ask("/live", private=True)).status == 200

            clock.write_text("+0")
            assert await status(fleeting) == 200, "its hour is not over"
            received = b""
            while part := await stream.chunk():
                received += part
            assert received.endswith(b"data: [DONE]\n\n")
            gateway.signal()
            assert await gateway.status() == 0
            assert b"Traceback" not in gateway.errors

    run(test)
