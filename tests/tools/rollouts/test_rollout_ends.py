"""Rollouts that end from outside: by a signal, by a death, by a gateway that vanishes; and one by an HTTPRoute."""

from __future__ import annotations

import asyncio
import json
import signal
from pathlib import Path

import pytest

from tests.fakes.kube_api import FakeKubeApi
from tests.fakes.triton_http import FakeTriton
from tests.gateway.process import GatewayProcess
from tests.tools.rollouts.callers import Callers
from tests.tools.rollouts.compressed import (
    ANY_PACE,
    QUICK,
    answer_well,
    command,
    end,
    failing_each,
    rollout_between,
)

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("way", ["interrupt", "undo"])
def test_rollout_that_is_stopped_takes_all_callers_back(way: str, tmp_path: Path) -> None:
    async def check() -> None:
        async with rollout_between(tmp_path, FakeTriton(answer=answer_well)) as (rollout, callers):
            process = await rollout.begin("--hold", "10m", "--max-hold", "1h")
            await rollout.until_state(lambda state: state["phase"] == "watching")
            assert rollout.weight == 30.0
            assert (
                f"by process {process.pid}" in (await end(await command("status", "--routes", str(rollout.routes))))[1]
            )
            # There is one writer.
            status, said = await end(await rollout.begin())
            assert (status, f"process {process.pid}" in said) == (1, True), said
            if way == "undo":
                assert (await end(await command("undo", "--routes", str(rollout.routes))))[0] == 0
            else:
                process.send_signal(signal.SIGINT)
            status, said = await end(process)
            assert (status, rollout.weight, await rollout.shown_weight()) == (130, 0.0, 0.0), said
        assert callers.statuses.keys() == {200}

    asyncio.run(check())


def test_rollout_whose_command_dies_stays_and_can_be_resumed_or_undone(tmp_path: Path) -> None:
    async def check() -> None:
        async with rollout_between(tmp_path, FakeTriton(answer=answer_well)) as (rollout, callers):
            process = await rollout.begin("--hold", "10m", "--max-hold", "1h")
            await rollout.until_state(lambda state: state["phase"] == "watching")
            process.kill()
            await end(process)
            assert rollout.weight == 30.0
            status, said = await end(await command("status", "--routes", str(rollout.routes)))
            assert (status, "nobody: start --resume goes on" in said) == (0, True), said
            status, said = await end(await rollout.begin())
            assert (status, "--resume" in said, rollout.weight) == (1, True, 30.0), said
            status, said = await end(await rollout.begin("--resume"))
            assert (status, rollout.weight) == (0, 100.0), said
            status, said = await end(await command("undo", "--routes", str(rollout.routes)))
            assert (status, rollout.weight, "100 %" in said) == (0, 0.0, True), said
            status, said = await end(await command("finish", "--routes", str(rollout.routes)))
            assert (status, rollout.weight) == (1, 0.0), said
        assert callers.statuses.keys() == {200}

    asyncio.run(check())


def test_rollout_is_undone_when_a_gateway_vanishes_or_the_canary_dies(tmp_path: Path) -> None:
    async def check() -> None:
        async with rollout_between(tmp_path, FakeTriton(answer=answer_well)) as (rollout, callers):
            second = GatewayProcess(rollout.stable, options=("--routes", str(rollout.routes), "--quiet"))
            async with second:
                options = ("--hold", "10m", "--max-hold", "1h", "--patience", "6s")
                process = await rollout.begin(
                    *options, "--gateway", f"http://127.0.0.1:{second.private_port}"
                )  # fmt: skip
                await rollout.until_state(lambda state: state["phase"] == "watching")
                second.process.kill()
                status, said = await end(process)
            assert (status, "unreadable" in said, rollout.weight) == (3, True, 0.0), said
            process = await rollout.begin(*options)
            await rollout.until_state(lambda state: state["phase"] == "watching")
            await rollout.canary.kill()
            status, said = await end(process)
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
        canary = FakeTriton(answer=answer_well)
        with fake.listening() as url:
            async with FakeTriton(answer=answer_well) as old, canary:
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
                    status, said = await end(await command(*words))
                    assert (status, seen) == (0, [30, 100]), said
                    undo = await command(
                        "undo", "--httproute", "trident/trident", "--kube-api", url, "--state", str(tmp_path / "state")
                    )
                    assert (await end(undo))[0] == 0
                    assert fake.weights == {"trident": 100, "trident-canary": 0}
                    canary.answer = failing_each(10)
                    status, said = await end(await command(*words))
                    assert (status, ": errors." in said, seen) == (3, True, [30, 100, 0, 30, 0]), said

    asyncio.run(check())
