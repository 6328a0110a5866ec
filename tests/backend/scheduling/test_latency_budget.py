"""Prompts beside running streams, on an engine whose steps take a known time, with noise."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest

from tests.fakes.core import TimedEngine, add, expected_output, make_core, make_sequence
from trident_backend.core import EngineCore
from trident_backend.engine.protocol import EngineSpec
from trident_backend.scheduling.budget import StepBudget
from trident_backend.sequences.sequence import Sequence
from trident_backend.sequences.step_time import StepSize, StepTime, StepTimeModel
from trident_ensemble.contract.settings import CoreSettings

SPEC = EngineSpec(vocab_size=97, max_num_seqs=16, max_num_tokens=2048, max_seq_len=8192, block_size=16, num_blocks=4096)
TRUTH = StepTime(base=0.01, per_token=5e-5, per_pair=1.5e-8, per_row=1e-4)
TARGET_MS = 40
NUM_STREAMS = 8


def _noisy(scale: float) -> Callable[[StepSize], float]:
    rng = np.random.default_rng(4)
    return lambda size: TRUTH.seconds(size) * float(np.clip(rng.normal(1, scale), 0.9, 1.1))


@dataclass(frozen=True)
class _Mixed:
    """A step that took in prompt tokens beside streams."""

    seconds: float
    num_prompt_tokens: int
    best: int


def _best_chunk(streams: StepSize, past_len: int) -> int:
    """The most prompt tokens after `past_len` that the true cost allows in time, one by one."""
    low, high = 0, SPEC.max_num_tokens
    while low < high:
        middle = (low + high + 1) // 2
        in_time = TRUTH.seconds(streams.with_chunk(middle, past_len, 0)) <= TARGET_MS / 1000
        low, high = (middle, high) if in_time else (low, middle - 1)
    return low


def _beside_streams(core: EngineCore, prompts: list[Sequence]) -> list[_Mixed]:
    """Compute prompts one after another beside eight streams that never end."""
    streams = [make_sequence(100 + i, [i] * 64, 4000) for i in range(NUM_STREAMS)]
    add(core, *streams)
    for _ in range(40):
        core.step()
    steps = []
    for prompt in prompts:
        add(core, prompt)
        while prompt.first_token_at is None:
            past = prompt.num_computed_tokens
            size = StepSize(NUM_STREAMS, sum(s.num_tokens for s in streams), NUM_STREAMS)
            result = core.step()
            assert len(result.advances) >= NUM_STREAMS, "a stream waited"
            num_prompt_tokens = prompt.num_computed_tokens - past
            assert num_prompt_tokens > 0, "the prompt did not progress"
            if prompt.num_output_tokens == 0:
                steps.append(_Mixed(result.seconds, num_prompt_tokens, _best_chunk(size, past)))
    assert all(s.num_output_tokens > 40 for s in streams)
    return steps


def _prompts(count: int) -> list[Sequence]:
    return [make_sequence(i, [i % 97] * 5000, 1, reuse_cache=False) for i in range(count)]


def test_latency_budget_streams_keep_their_pace_and_prompts_get_all_the_rest() -> None:
    core, _ = make_core(CoreSettings(target_itl_ms=TARGET_MS), SPEC, _noisy(0.03))
    steps = _beside_streams(core, _prompts(5))
    assert len(steps) > 40
    learned = steps[len(steps) // 3 :]
    in_time = sum(step.seconds <= TARGET_MS / 1000 for step in learned) / len(learned)
    assert in_time >= 0.8, "the 90th percentile is what is aimed at"
    shares = [step.num_prompt_tokens / step.best for step in learned]
    assert np.median(shares) >= 0.8
    assert max(step.seconds for step in learned) <= TARGET_MS / 1000 * 1.2


def test_latency_budget_without_noise_every_step_is_in_time_and_nearly_full() -> None:
    core, _ = make_core(CoreSettings(target_itl_ms=TARGET_MS), SPEC, TRUTH.seconds)
    steps = _beside_streams(core, _prompts(3))
    learned = steps[len(steps) // 3 :]
    assert max(step.seconds for step in learned) <= TARGET_MS / 1000 * 1.02
    assert min(step.num_prompt_tokens / step.best for step in learned) >= 0.9


def test_latency_budget_without_a_target_a_prompt_fills_the_token_budget() -> None:
    core, _ = make_core(CoreSettings(), SPEC, TRUTH.seconds)
    steps = _beside_streams(core, _prompts(2))
    assert {step.num_prompt_tokens for step in steps} == {SPEC.max_num_tokens - NUM_STREAMS}


def test_latency_budget_with_nobody_to_wait_for_it_a_prompt_fills_the_token_budget() -> None:
    core, _ = make_core(CoreSettings(target_itl_ms=TARGET_MS), SPEC, TRUTH.seconds)
    alone = make_sequence(0, [1] * 5000, 1)
    add(core, alone)
    assert [core.step().output.num_tokens for _ in range(3)] == [2048, 2048, 904]


def test_latency_budget_a_target_that_cannot_be_kept_does_not_starve_a_prompt() -> None:
    core, _ = make_core(CoreSettings(target_itl_ms=1), SPEC, TRUTH.seconds)
    prompt = make_sequence(0, [1] * 160, 1, reuse_cache=False)
    steps = _beside_streams(core, [prompt])
    assert [step.num_prompt_tokens for step in steps] == [16] * 9
    assert prompt.token_ids[160:] == expected_output(prompt)


def test_latency_budget_a_machine_that_slows_down_is_followed() -> None:
    core, _ = make_core(CoreSettings(target_itl_ms=TARGET_MS), SPEC, TRUTH.seconds)
    _beside_streams(core, _prompts(2))
    engine = core._engine
    assert isinstance(engine, TimedEngine)
    engine.seconds = lambda size: 1.7 * TRUTH.seconds(size)
    seconds = []
    for prompt in _prompts(8)[2:]:
        add(core, prompt)
        while prompt.first_token_at is None:
            seconds.append(core.step().seconds)
    assert max(seconds[:8]) > TARGET_MS / 1000 * 1.2, "it cannot have known"
    assert np.percentile(seconds[-60:], 90) <= TARGET_MS / 1000 * 1.05


@pytest.mark.parametrize(
    ("size", "streams", "room"),
    [
        (StepSize(), None, 100),
        (StepSize(60, 60, 1), None, 40),
        (StepSize(4, 40, 4), StepSize(4, 40, 4), 16),
        (StepSize(14, 90, 4), StepSize(4, 40, 4), 6),
        (StepSize(30, 300, 4), StepSize(4, 40, 4), 0),
        (StepSize(94, 940, 94), StepSize(94, 940, 94), 6),
    ],
)
def test_latency_budget_room_before_anything_is_known(size: StepSize, streams: StepSize | None, room: int) -> None:
    """All of the token budget without streams; beside them 16 prompt tokens a step, whatever has been taken of them."""
    assert StepBudget(100, 0.04, StepTimeModel()).room(size, streams, 0) == room
    assert StepBudget(100, 0.0, StepTimeModel()).room(size, streams, 0) == 100 - size.num_tokens
