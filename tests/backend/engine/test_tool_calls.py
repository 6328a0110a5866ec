"""Tool calls of a real engine: a random network, sampled at temperature 1, calls random tools in every format."""

from __future__ import annotations

import random
import time
from dataclasses import replace
from pathlib import Path

import pytest

from tests.backend.engine.conftest import BuildAndLoad
from tests.checkpoints import make_checkpoint
from tests.gateway.tool_calls.models import HERMES, LLAMA, MISTRAL, MISTRAL_NAMED
from tests.gateway.tool_calls.random_tools import is_call, random_tool
from tests.gateway.tool_calls.test_guided_answers import Model
from trident_backend.core import EngineCore
from trident_backend.sequences.sampling_params import SamplingParams
from trident_backend.sequences.sequence import FinishReason, Sequence
from trident_ensemble.contract.model_card import ModelCard
from trident_ensemble.contract.settings import CoreSettings
from trident_gateway.tool_calls.guides import ToolPlan, plan_tools
from trident_gateway.tool_calls.tools import Choice, Tool, ToolChoice

#: `</s>` of the tokenizers that the tests have trained.
END_ID = 1
NUM_TOOLS = 100
MAX_TOKENS = 400


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """The tokenizer with the markers of all formats."""
    return Model(tmp_path_factory.mktemp("guides"), has_markers=True)


@pytest.fixture(scope="module")
def checkpoint(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random network over that tokenizer."""
    folder = tmp_path_factory.mktemp("tools") / "llama"
    return make_checkpoint(folder, tokenizer=model.tokenizer, end_ids=[END_ID], vocab_size=1001, num_hidden_layers=1)


@pytest.mark.parametrize("max_draft_tokens", [0, 3])
def test_tool_calls_of_a_random_network_are_valid(
    checkpoint: Path, model: Model, engine_of: BuildAndLoad, max_draft_tokens: int
) -> None:
    """A hundred tools, four formats, and each way of wanting a call."""
    core = EngineCore(engine_of(checkpoint), CoreSettings(max_draft_tokens=max_draft_tokens), time.monotonic)
    rng = random.Random(max_draft_tokens)  # noqa: S311 (no secrets)
    requests: list[tuple[ModelCard, tuple[Tool, ...], ToolPlan, Sequence]] = []
    cards = [model.card(card) for card in (HERMES, LLAMA, MISTRAL, MISTRAL_NAMED)]
    for number in range(NUM_TOOLS):
        card, choice = cards[number % 4], list(_CHOICES)[number // 4 % 3]
        tools: tuple[Tool, ...] = (random_tool(rng, number), random_tool(rng, number + NUM_TOOLS))
        wanted = ToolChoice(choice, tools[0].name if choice is Choice.NAMED else "")
        plan = plan_tools(card, tools, wanted, parallel=False)
        requests.append((card, tools, plan, _sequence(model, number, plan, choice)))
        core.scheduler.add(requests[-1][3], float(number))
    while core.scheduler.waiting or core.scheduler.running:
        core.step()
    core.close()
    num_calls = 0
    for card, offered, plan, sequence in requests:
        assert sequence.error is None
        content, reasoning, calls = model.read(card, plan, sequence.token_ids[1:])
        assert not reasoning
        assert not content or plan.choice is Choice.AUTO
        if sequence.finish_reason is FinishReason.LENGTH:
            continue
        assert len(calls) == 1 or (plan.choice is Choice.AUTO and not calls)
        assert all(is_call(offered, *call) for call in calls), calls
        num_calls += len(calls)
    assert num_calls > NUM_TOOLS // 2


_CHOICES = (Choice.REQUIRED, Choice.NAMED, Choice.AUTO)


def _sequence(model: Model, number: int, plan: ToolPlan, choice: Choice) -> Sequence:
    assert plan.guide_type is not None
    assert plan.guide is not None
    guide = model.guides.compile(plan.guide_type, plan.guide).start(frozenset({END_ID}))
    # The network has learnt nothing, so what ends JSON, and begins a call that is not required, is made likely.
    likely = [(token_id, 5.0) for token_id in model.closers]
    if choice is Choice.AUTO:
        likely = [(token_id, 30.0) for token_id in plan.marker_ids] + likely
    biases = tuple(dict(reversed(likely)).items())
    sampling = replace(SamplingParams(), temperature=1.0, seed=number, logit_bias=biases)
    return Sequence(number, [7], 1, MAX_TOKENS, sampling, frozenset({END_ID}), guide=guide)
