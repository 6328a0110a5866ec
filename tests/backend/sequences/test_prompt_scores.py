"""Prompts whose tokens are scored: each once, in order, few rows a step, whatever else happens."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fakes.core import SPEC, Clock, TimedEngine, add, make_core, make_sequence
from tests.fakes.followers import ScoringSampler
from trident_backend.batch import pack
from trident_backend.core import EngineCore
from trident_backend.engine.mock import next_token
from trident_backend.sequences.choices import TokenLogProbs
from trident_backend.sequences.prompt_scores import MAX_ROWS
from trident_backend.sequences.sampling_params import SamplingParams
from trident_backend.sequences.sequence import FinishReason, Sequence
from trident_backend.sequences.step_time import StepSize, StepTime
from trident_backend.sequences.steps import SchedulerOutput
from trident_ensemble.contract.settings import BatchSchedulerPolicy, CoreSettings

SCORED = SamplingParams(prompt_log_probs=True)
ROOMY = replace(SPEC, max_num_tokens=256, max_seq_len=512, num_blocks=512)


def _core(settings: CoreSettings | None = None, **limits: Any) -> EngineCore:
    core, _ = make_core(settings, replace(ROOMY, **limits))
    core._sampler = ScoringSampler(core._sampler, SPEC.vocab_size)  # type: ignore[assignment]
    return core


def _prompt(length: int, salt: int = 1) -> list[int]:
    return [(place * place + salt) % 97 for place in range(length)]


def _expected(sequence: Sequence) -> list[TokenLogProbs]:
    """What the engine itself would have chosen in place of each token, from the second on."""
    prompt = np.array(sequence.token_ids[: sequence.num_prompt_tokens], np.int64)
    return [TokenLogProbs(-float(next_token(prompt[:place], 1009) % 97)) for place in range(1, len(prompt))]


def _run(core: EngineCore) -> list[SchedulerOutput]:
    steps: list[SchedulerOutput] = []
    while core.scheduler.waiting or core.scheduler.running:
        assert len(steps) < 500, "it does not come to an end"
        steps.append(core.step().output)
        core.kv_cache.check_integrity(core.scheduler.running)
    return steps


@pytest.mark.parametrize("length", [1, 2, 3, MAX_ROWS, MAX_ROWS + 1, MAX_ROWS + 2, 200])
def test_prompt_scores_each_token_but_the_first_is_scored_once_in_small_chunks(length: int) -> None:
    core = _core()
    sequence = make_sequence(0, _prompt(length), 3, sampling=SCORED)
    add(core, sequence)
    chunks = [step.chunks[0] for step in _run(core)]
    assert sequence.prompt_log_probs == _expected(sequence)
    whole, rest = divmod(length - 1, MAX_ROWS)
    scored = [MAX_ROWS] * whole + [rest] * (rest > 0)
    assert [chunk.num_scored for chunk in chunks if chunk.num_scored] == scored
    num_prompt_steps = max(1, len(scored))
    assert len(chunks) == num_prompt_steps + 2, "the last token goes with the last scores, and chooses"
    assert sequence.log_probs == []


def test_prompt_scores_a_step_counts_and_names_its_rows() -> None:
    core = _core()
    sequence, stream = make_sequence(0, [10, 11, 12, 13], 2, sampling=SCORED), make_sequence(1, [5], 9)
    add(core, stream)
    core.step()
    add(core, sequence)
    output = core.scheduler.schedule(1.0)
    assert output.size.num_rows == 5
    assert [(row.sequence, row.position, row.is_scored) for row in output.rows] == [
        (stream, 2, False),
        *((sequence, place, True) for place in (1, 2, 3)),
        (sequence, 4, False),
    ]
    packed = pack(output, SPEC.block_size)
    assert packed.logit_rows.tolist() == [0, 1, 2, 3, 4]
    assert packed.token_ids[1:].tolist() == [10, 11, 12, 13]


def test_prompt_scores_only_as_many_rows_score_as_a_step_may_have_and_other_prompts_go_on() -> None:
    core = _core()
    stream = make_sequence(0, [3], 30)
    add(core, stream)
    core.step()
    scored = [make_sequence(1 + i, _prompt(100, i), 2, sampling=SCORED) for i in range(2)]
    plain = make_sequence(3, _prompt(90, 9), 2)
    add(core, *scored, plain)
    steps = _run(core)
    assert max(sum(chunk.num_scored for chunk in step.chunks) for step in steps) == MAX_ROWS
    assert plain.num_cached_tokens == 0
    first = {chunk.sequence: chunk for chunk in steps[0].chunks}
    assert (first[scored[0]].num_scored, scored[1] in first, first[plain].num_new_tokens) == (MAX_ROWS, False, 90)
    assert [sequence.prompt_log_probs for sequence in scored] == [_expected(sequence) for sequence in scored]
    assert all(any(chunk.sequence is stream for chunk in step.chunks) for step in steps[:8])


def test_prompt_scores_what_is_in_the_cache_is_computed_again_to_be_scored() -> None:
    core = _core()
    first, second = (make_sequence(i, _prompt(40), 2, sampling=SamplingParams() if i == 0 else SCORED) for i in (0, 1))
    add(core, first)
    _run(core)
    add(core, second)
    _run(core)
    assert second.num_cached_tokens == 0
    assert second.prompt_log_probs == _expected(second)
    assert first.prompt_log_probs == []


@pytest.mark.parametrize("reuse", [True, False])
def test_prompt_scores_after_a_preemption_nothing_is_scored_twice(reuse: bool) -> None:
    """An old stream takes the room of a prompt that is half scored."""
    settings = CoreSettings(
        batch_scheduler_policy=BatchSchedulerPolicy.MAX_UTILIZATION, token_budget=4, enable_kv_cache_reuse=reuse
    )
    core = _core(settings, num_blocks=34, max_num_tokens=16)
    old = make_sequence(0, [1] * 4, 110)
    young = make_sequence(1, _prompt(60), 2, arrived_at=1.0, sampling=SCORED)
    add(core, old)
    for _ in range(56):
        core.step()
    add(core, young)
    places: Counter[int] = Counter()
    preempted_at = []
    for step in _run(core):
        places.update(row.position for row in step.rows if row.sequence is young and row.position < 60)
        preempted_at += [len(places) for _ in step.preempted]
    assert len(preempted_at) == 1
    assert 20 < preempted_at[0] < 59, "it was half scored"
    assert set(places.values()) == {1}
    assert young.prompt_log_probs == _expected(young)
    assert young.finish_reason is old.finish_reason is FinishReason.LENGTH


def test_prompt_scores_streams_keep_their_pace_beside_a_prompt_that_is_scored() -> None:
    truth = StepTime(base=0.005, per_token=1e-4, per_pair=0.0, per_row=1e-3)
    core = EngineCore(TimedEngine(ROOMY, clock := Clock(), truth.seconds), CoreSettings(target_itl_ms=40), clock)
    core._sampler = ScoringSampler(core._sampler, SPEC.vocab_size)  # type: ignore[assignment]
    add(core, make_sequence(0, [5], 500), make_sequence(1, [6], 500))
    seconds = []
    for number in range(2, 42):
        # Others that are not scored tell what a row costs from what a token does.
        sampling = SCORED if number % 2 else SamplingParams()
        add(core, sequence := make_sequence(number, _prompt(200), 1, sampling=sampling, reuse_cache=False))
        while sequence.finish_reason is None:
            seconds.append(core.step().seconds)
    assert max(seconds[len(seconds) // 2 :]) <= 0.04 * 1.02
    assert len(seconds) < 20 * (200 / 20 + 2), "and it gets what time there is"


@given(
    per_token=st.floats(1e-6, 1e-3),
    per_row=st.floats(0, 1e-3),
    per_pair=st.floats(0, 1e-6),
    past_len=st.integers(0, 500),
    seconds=st.floats(0.001, 0.2),
)
def test_prompt_scores_the_latency_budget_counts_the_rows_that_score(
    seconds: float, past_len: int, **prices: Any
) -> None:
    step_time = StepTime(base=0.005, **prices)
    size = StepSize(8, 800, 8)
    chunk = step_time.largest_chunk(size, past_len, seconds, rows_per_token=1)
    assert chunk == 0 or step_time.seconds(size.with_chunk(chunk, past_len, chunk)) <= seconds * (1 + 1e-9)
    assert step_time.seconds(size.with_chunk(chunk + 1, past_len, chunk + 1)) > seconds * (1 - 1e-9)
