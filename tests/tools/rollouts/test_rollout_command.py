"""`trident rollout` with a real gateway between callers and two servers, in compressed time.

Whatever the canary does, it ends without a caller within one window, and nobody is answered 503.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.child_processes import tied
from tests.fakes.kube_api import FakeKubeApi
from tests.fakes.triton_http import FakeTriton, Script, refusal, tokens
from tests.gateway.http.room import LIMIT_S
from tests.gateway.process import ROOT, GatewayProcess
from tests.tools.rollouts.callers import Callers
from trident_ensemble.contract.model_card import ModelCard
from trident_ensemble.contract.routes import parse_routes

pytestmark = pytest.mark.slow

#: Seconds until the first part of an answer; the slow ones must be slow on a busy machine, too.
TTFT_S = 0.02
LONG_TTFT_S = 0.25
OTHER_CARD = ModelCard("demo", 1_800_000_000, 4096, digest="d1")
QUICK = (
    "--stages", "30,100", "--hold", "1s", "--max-hold", "40s", "--min-requests", "80", "--poll", "200ms",
    "--patience", "8s",
)  # fmt: skip

#: For tests of other gates, which a busy machine must not fail.
ANY_PACE = ("--max-ttft-ratio", "20", "--max-itl-ratio", "20")

Answer = Callable[[dict[str, Any]], Script]


def _answer(request: dict[str, Any], *, ttft_s: float = TTFT_S, finish: str = "stop") -> Script:
    """Answer as a server does that stops by itself."""
    script = tokens(request)
    is_trial = not _is_of_caller(request)
    events = [{**event, "finish_reason": finish} if "finish_reason" in event else event for event in script.events]
    gate = asyncio.Event()
    asyncio.get_running_loop().call_later(0 if is_trial else ttft_s, gate.set)
    return Script(script.events if is_trial else events, gate=gate)


def _is_of_caller(request: dict[str, Any]) -> bool:
    """Return whether a request is none of the trial's."""
    return "times" in str(request.get("text_input"))


def _failing_each(number: int) -> Answer:
    """Return an answer that is an error for each so-many-th request of a caller."""
    count = 0

    def answer(request: dict[str, Any]) -> Script:
        nonlocal count
        count += _is_of_caller(request)
        return refusal("[INTERNAL] a bug") if _is_of_caller(request) and count % number == 0 else _answer(request)

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
        return await _command(
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
async def _rollout(
    folder: Path, canary: FakeTriton, answer: Answer = _answer, *, num_callers: int = 6
) -> AsyncIterator[tuple[Rollout, Callers]]:
    routes = folder / "routes.json"
    routes.write_text('{"format": 1}\n', encoding="utf-8")
    async with FakeTriton(answer=answer) as stable, canary:
        async with GatewayProcess(stable, options=("--routes", str(routes), "--quiet")) as gateway:
            async with Callers(gateway, num_callers) as callers:
                yield Rollout(folder, stable, canary, gateway), callers


async def _command(*words: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *tied([sys.executable, "-m", "trident_tools.main", "rollout", *words]),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )


async def _end(process: asyncio.subprocess.Process) -> tuple[int | None, str]:
    """Return the exit status of a command and what it has said."""
    said, _ = await asyncio.wait_for(process.communicate(), LIMIT_S)
    return process.returncode, said.decode()


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (_failing_each(20), "errors"),
        (lambda request: _answer(request, ttft_s=2 * LONG_TTFT_S), "ttft"),
        (lambda request: _answer(request, finish="length"), "finish"),
    ],
    ids=["errors", "ttft", "stop_token"],
)
def test_rollout_of_a_bad_canary_is_undone_in_its_first_window(answer: Answer, reason: str, tmp_path: Path) -> None:
    is_slow = reason == "ttft"
    stable: Answer = partial(_answer, ttft_s=LONG_TTFT_S) if is_slow else _answer

    async def check() -> None:
        canary = FakeTriton(answer=answer)
        async with _rollout(tmp_path, canary, stable, num_callers=24 if is_slow else 6) as (rollout, callers):
            options = ("--max-itl-ratio", "20") if is_slow else ()
            status, said = await _end(await rollout.begin(*options, is_any_pace=not is_slow))
            assert status == 3, said
            assert "Stage 2" not in said
            state = json.loads(rollout.state.read_text(encoding="utf-8"))
            assert (state["phase"], state["reason"], state["undone"]) == ("undone", reason, {reason: 1}), said
            assert (rollout.weight, await rollout.shown_weight()) == (0.0, 0.0)
            page = rollout.textfile.read_text(encoding="utf-8")
            assert f'trident_rollout_undone_total{{reason="{reason}"}} 1.0' in page
            assert "trident_rollout_weight 0.0" in page
            assert rollout.canary.requests, "it had callers"
        assert callers.statuses.keys() <= ({200, 500} if reason == "errors" else {200}), callers.statuses

    asyncio.run(check())


def test_rollout_of_a_canary_that_is_not_ready_moves_nobody(tmp_path: Path) -> None:
    async def check() -> None:
        canary = FakeTriton(answer=_answer)
        canary.is_ready = False
        async with _rollout(tmp_path, canary) as (rollout, callers):
            status, said = await _end(await rollout.begin("--patience", "2s"))
            assert (status, "not_ready" in said, rollout.weight) == (3, True, 0.0), said
            assert not canary.requests
        assert callers.statuses.keys() == {200}

    asyncio.run(check())


def test_rollout_of_a_canary_with_another_template_moves_nobody_unless_that_is_allowed(tmp_path: Path) -> None:
    async def check() -> None:
        async with _rollout(tmp_path, FakeTriton(OTHER_CARD, answer=_answer)) as (rollout, _):
            status, said = await _end(await rollout.begin())
            assert (status, ": other_digest." in said, rollout.weight) == (3, True, 0.0), said
            assert "--allow-other-digest" in said

    asyncio.run(check())


def test_rollout_of_a_good_canary_reaches_everybody_and_is_promoted(tmp_path: Path) -> None:
    async def check() -> None:
        async with _rollout(tmp_path, FakeTriton(OTHER_CARD, answer=_answer)) as (rollout, callers):
            status, said = await _end(await rollout.begin("--allow-other-digest"))
            assert status == 0, said
            assert "digest d1 instead of d0" in said
            assert said.index("Stage 1 of 2: 30 %") < said.index("Stage 2 of 2: 100 %") < said.index("Done")
            assert (rollout.weight, await rollout.shown_weight()) == (100.0, 100.0)
            assert "trident_rollout_stage 2.0" in rollout.textfile.read_text()
            status, said = await _end(await _command("finish", "--routes", str(rollout.routes)))
            assert (status, rollout.canary.address.url in said) == (0, True), said
            routes = parse_routes(rollout.routes.read_text(encoding="utf-8"))
            assert routes.canary is None
            assert routes.stable is not None
            assert [server.url for server in routes.stable.servers] == [rollout.canary.address.url]
            # It is the stable side now, and the old one may go.
            num_before = len(rollout.canary.requests)
            while len(rollout.canary.requests) < num_before + 20 or await rollout.shown_weight():
                await asyncio.sleep(0.05)
        assert callers.statuses.keys() == {200}

    asyncio.run(check())


@pytest.mark.parametrize("way", ["interrupt", "undo"])
def test_rollout_that_is_stopped_takes_all_callers_back(way: str, tmp_path: Path) -> None:
    async def check() -> None:
        async with _rollout(tmp_path, FakeTriton(answer=_answer)) as (rollout, callers):
            process = await rollout.begin("--hold", "10m", "--max-hold", "1h")
            await rollout.until_state(lambda state: state["phase"] == "watching")
            assert rollout.weight == 30.0
            assert (
                f"by process {process.pid}"
                in (await _end(await _command("status", "--routes", str(rollout.routes))))[1]
            )
            # There is one writer.
            status, said = await _end(await rollout.begin())
            assert (status, f"process {process.pid}" in said) == (1, True), said
            if way == "undo":
                assert (await _end(await _command("undo", "--routes", str(rollout.routes))))[0] == 0
            else:
                process.send_signal(signal.SIGINT)
            status, said = await _end(process)
            assert (status, rollout.weight, await rollout.shown_weight()) == (130, 0.0, 0.0), said
        assert callers.statuses.keys() == {200}

    asyncio.run(check())


def test_rollout_whose_command_dies_stays_and_can_be_resumed_or_undone(tmp_path: Path) -> None:
    async def check() -> None:
        async with _rollout(tmp_path, FakeTriton(answer=_answer)) as (rollout, callers):
            process = await rollout.begin("--hold", "10m", "--max-hold", "1h")
            await rollout.until_state(lambda state: state["phase"] == "watching")
            process.kill()
            await _end(process)
            assert rollout.weight == 30.0
            status, said = await _end(await _command("status", "--routes", str(rollout.routes)))
            assert (status, "nobody: start --resume goes on" in said) == (0, True), said
            status, said = await _end(await rollout.begin())
            assert (status, "--resume" in said, rollout.weight) == (1, True, 30.0), said
            status, said = await _end(await rollout.begin("--resume"))
            assert (status, rollout.weight) == (0, 100.0), said
            status, said = await _end(await _command("undo", "--routes", str(rollout.routes)))
            assert (status, rollout.weight, "100 %" in said) == (0, 0.0, True), said
            status, said = await _end(await _command("finish", "--routes", str(rollout.routes)))
            assert (status, rollout.weight) == (1, 0.0), said
        assert callers.statuses.keys() == {200}

    asyncio.run(check())


def test_rollout_is_undone_when_a_gateway_vanishes_or_the_canary_dies(tmp_path: Path) -> None:
    async def check() -> None:
        async with _rollout(tmp_path, FakeTriton(answer=_answer)) as (rollout, callers):
            second = GatewayProcess(rollout.stable, options=("--routes", str(rollout.routes), "--quiet"))
            async with second:
                options = ("--hold", "10m", "--max-hold", "1h", "--patience", "6s")
                process = await rollout.begin(
                    *options, "--gateway", f"http://127.0.0.1:{second.private_port}"
                )  # fmt: skip
                await rollout.until_state(lambda state: state["phase"] == "watching")
                second.process.kill()
                status, said = await _end(process)
            assert (status, "unreadable" in said, rollout.weight) == (3, True, 0.0), said
            process = await rollout.begin(*options)
            await rollout.until_state(lambda state: state["phase"] == "watching")
            await rollout.canary.kill()
            status, said = await _end(process)
            reason = json.loads(rollout.state.read_text(encoding="utf-8"))["reason"]
            assert (status, reason in {"ejections", "errors"}, rollout.weight) == (3, True, 0.0), said
        # Streams of the server that died may have ended with an error; nobody was sent away.
        assert callers.statuses.keys() <= {200, 500, 0}, callers.statuses
        assert callers.statuses[200] > 100

    asyncio.run(check())


def test_rollout_by_an_httproute_compares_two_deployments(tmp_path: Path) -> None:
    async def check() -> None:
        fake = FakeKubeApi()
        seen: list[int] = []
        fake.on_change = seen.append
        canary = FakeTriton(answer=_answer)
        with fake.listening() as url:
            async with FakeTriton(answer=_answer) as old, canary:
                async with GatewayProcess(old, options=("--quiet",)) as stable, GatewayProcess(
                    canary, options=("--quiet",)
                ) as new, Callers(stable, 3), Callers(new, 3):  # fmt: skip
                    words = (
                        "start", "--httproute", "trident/trident", "--kube-api", url,
                        "--to", f"http://127.0.0.1:{new.port}", "--compare-with", f"http://127.0.0.1:{stable.port}",
                        "--gateway", f"http://127.0.0.1:{stable.private_port}",
                        "--canary-gateway-dns", f"http://127.0.0.1:{new.private_port}",
                        "--state", str(tmp_path / "state"), *QUICK, *ANY_PACE,
                    )  # fmt: skip
                    status, said = await _end(await _command(*words))
                    assert (status, seen) == (0, [30, 100]), said
                    undo = await _command(
                        "undo", "--httproute", "trident/trident", "--kube-api", url, "--state", str(tmp_path / "state")
                    )
                    assert (await _end(undo))[0] == 0
                    assert fake.weights == {"trident": 100, "trident-canary": 0}
                    canary.answer = _failing_each(10)
                    status, said = await _end(await _command(*words))
                    assert (status, ": errors." in said, seen) == (3, True, [30, 100, 0, 30, 0]), said

    asyncio.run(check())
