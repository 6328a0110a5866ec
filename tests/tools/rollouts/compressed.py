"""Rollouts between a real gateway and two servers, in compressed time.

Owns the servers' answers, the gateway, the callers, and the command. Never says how one must end.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from tests.child_processes import tied
from tests.fakes.triton_http import FakeTriton, Script, refusal, tokens
from tests.gateway.http.room import LIMIT_S
from tests.gateway.process import ROOT, GatewayProcess
from tests.tools.rollouts.callers import Callers
from trident_ensemble.contract.model_card import ModelCard
from trident_ensemble.contract.routes import parse_routes

#: Seconds until the first part of an answer; the slow ones must be slow on a busy machine, too.
TTFT_S = 0.02
LONG_TTFT_S = 0.25
OTHER_CARD = ModelCard("demo", 1_800_000_000, 4096, digest="d1")
QUICK = (
    "--stages", "30,100", "--warm-up", "1s", "--hold", "1s", "--max-hold", "40s", "--min-requests", "80",
    "--poll", "200ms", "--patience", "8s",
)  # fmt: skip

#: For tests of other gates, which a busy machine must not fail.
ANY_PACE = ("--max-ttft-ratio", "20", "--max-itl-ratio", "20")

Answer = Callable[[dict[str, Any]], Script]


def answer_well(request: dict[str, Any], *, ttft_s: float = TTFT_S, finish: str = "stop") -> Script:
    """Answer as a server does that stops by itself."""
    script = tokens(request)
    is_trial = not is_of_caller(request)
    events = [{**event, "finish_reason": finish} if "finish_reason" in event else event for event in script.events]
    gate = asyncio.Event()
    asyncio.get_running_loop().call_later(0 if is_trial else ttft_s, gate.set)
    return Script(script.events if is_trial else events, gate=gate)


def is_of_caller(request: dict[str, Any]) -> bool:
    """Return whether a request is none of the trial's."""
    return "times" in str(request.get("text_input"))


def failing_each(number: int) -> Answer:
    """Return an answer that is an error for each so-many-th request of a caller."""
    count = 0

    def answer(request: dict[str, Any]) -> Script:
        nonlocal count
        count += is_of_caller(request)
        return refusal("[INTERNAL] a bug") if is_of_caller(request) and count % number == 0 else answer_well(request)

    return answer


class Rollout:
    """One canary, one stable server, a gateway, and callers."""

    def __init__(self, folder: Path, stable: FakeTriton, canary: FakeTriton, gateway: GatewayProcess) -> None:
        self.routes = folder / "routes.json"
        self.state = folder / "routes.json.rollout"
        self.stable, self.canary, self.gateway = stable, canary, gateway
        self.textfile = folder / "rollout.prom"

    async def begin(self, *options: str, is_any_pace: bool = True) -> asyncio.subprocess.Process:
        """Start the command."""
        return await command(
            "start", "--routes", str(self.routes), "--to", self.canary.address.url,
            "--to-metrics-url", self.canary.address.metrics_url, "--compare-with", self.stable.address.url,
            "--gateway", f"http://127.0.0.1:{self.gateway.private_port}", "--textfile", str(self.textfile),
            *QUICK, *(ANY_PACE if is_any_pace else ()), *options,
        )  # fmt: skip

    async def until_state(self, is_there: Callable[[Mapping[str, Any]], bool]) -> None:
        """Wait for a state."""

        async def look() -> None:
            while not (self.state.exists() and is_there(json.loads(self.state.read_text(encoding="utf-8")))):
                await asyncio.sleep(0.05)

        await asyncio.wait_for(look(), LIMIT_S)

    @property
    def weight(self) -> float:
        """The canary's weight in the routes file."""
        return parse_routes(self.routes.read_text(encoding="utf-8")).weight

    async def shown_weight(self) -> float:
        """Return the canary's weight as the gateway shows it."""
        page = (await self.gateway.ask("/metrics", private=True)).body.decode()
        lines = [line for line in page.splitlines() if line.startswith('trident_gateway_route_weight{side="canary"}')]
        return float(lines[0].split()[1])


@asynccontextmanager
async def rollout_between(
    folder: Path, canary: FakeTriton, answer: Answer = answer_well, *, num_callers: int = 6
) -> AsyncIterator[tuple[Rollout, Callers]]:
    routes = folder / "routes.json"
    routes.write_text('{"format": 1}\n', encoding="utf-8")
    async with FakeTriton(answer=answer) as stable, canary:
        async with GatewayProcess(stable, options=("--routes", str(routes), "--quiet")) as gateway:
            async with Callers(gateway, num_callers) as callers:
                yield Rollout(folder, stable, canary, gateway), callers


async def command(*words: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *tied([sys.executable, "-m", "trident_tools.main", "rollout", *words]),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )


async def end(process: asyncio.subprocess.Process) -> tuple[int | None, str]:
    """Return the exit status of a command and what it has said."""
    said, _ = await asyncio.wait_for(process.communicate(), LIMIT_S)
    return process.returncode, said.decode()
