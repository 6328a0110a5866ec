"""`trident rollout` with a real gateway between callers and two servers, in compressed time.

Whatever the canary does, it ends without a caller within one window, and nobody is answered 503.
"""

from __future__ import annotations

import asyncio
import json
from functools import partial
from pathlib import Path

import pytest

from tests.fakes.triton_http import FakeTriton
from tests.tools.rollouts.compressed import (
    LONG_TTFT_S,
    OTHER_CARD,
    Answer,
    answer_well,
    command,
    end,
    failing_each,
    rollout_between,
)
from trident_ensemble.contract.routes import parse_routes

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (failing_each(20), "errors"),
        (lambda request: answer_well(request, ttft_s=2 * LONG_TTFT_S), "ttft"),
        (lambda request: answer_well(request, finish="length"), "finish"),
    ],
    ids=["errors", "ttft", "stop_token"],
)
def test_rollout_of_a_bad_canary_is_undone_in_its_first_window(answer: Answer, reason: str, tmp_path: Path) -> None:
    is_slow = reason == "ttft"
    stable: Answer = partial(answer_well, ttft_s=LONG_TTFT_S) if is_slow else answer_well

    async def check() -> None:
        canary = FakeTriton(answer=answer)
        async with rollout_between(tmp_path, canary, stable, num_callers=24 if is_slow else 6) as (rollout, callers):
            options = ("--max-itl-ratio", "20") if is_slow else ()
            status, said = await end(await rollout.begin(*options, is_any_pace=not is_slow))
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
        canary = FakeTriton(answer=answer_well)
        canary.is_ready = False
        async with rollout_between(tmp_path, canary) as (rollout, callers):
            status, said = await end(await rollout.begin("--patience", "2s"))
            assert (status, "not_ready" in said, rollout.weight) == (3, True, 0.0), said
            assert not canary.requests
        assert callers.statuses.keys() == {200}

    asyncio.run(check())


def test_rollout_of_a_canary_with_another_template_moves_nobody_unless_that_is_allowed(tmp_path: Path) -> None:
    async def check() -> None:
        async with rollout_between(tmp_path, FakeTriton(OTHER_CARD, answer=answer_well)) as (rollout, _):
            status, said = await end(await rollout.begin())
            assert (status, ": other_digest." in said, rollout.weight) == (3, True, 0.0), said
            assert "--allow-other-digest" in said

    asyncio.run(check())


def test_rollout_of_a_good_canary_reaches_everybody_and_is_promoted(tmp_path: Path) -> None:
    async def check() -> None:
        async with rollout_between(tmp_path, FakeTriton(OTHER_CARD, answer=answer_well)) as (rollout, callers):
            status, said = await end(await rollout.begin("--allow-other-digest"))
            assert status == 0, said
            assert "digest d1 instead of d0" in said
            assert said.index("Stage 1 of 2: 30 %") < said.index("Stage 2 of 2: 100 %") < said.index("Done")
            assert (rollout.weight, await rollout.shown_weight()) == (100.0, 100.0)
            assert "trident_rollout_stage 2.0" in rollout.textfile.read_text()
            status, said = await end(await command("finish", "--routes", str(rollout.routes)))
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
