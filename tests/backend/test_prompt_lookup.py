"""Guesses: never in the output unless chosen, made where they pay, judged as an onlooker would."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from itertools import takewhile

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.backend.doubles import SPEC, TimedEngine, add, expected_output, linear, make_core, make_sequence, run_to_end
from trident_backend.core import EngineCore
from trident_backend.prompt_lookup import PromptLookup
from trident_backend.sequence import SamplingParams, Sequence
from trident_backend.speculation import worthwhile
from trident_backend.step_time import StepSize
from trident_ensemble.settings import CoreSettings

NARROW = replace(SPEC, vocab_size=3)
BASE_BOUND, TOKEN_BOUND = linear(0.01, 1e-5), linear(0.0, 0.001)
PERIOD = 7


@pytest.fixture
def periodic(monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine that repeats what stood seven places before, read back from its cache."""

    def next_token(context: npt.NDArray[np.int64], vocab_size: int) -> int:
        return int(context[len(context) - PERIOD]) % vocab_size

    monkeypatch.setattr("trident_backend.engine.mock.next_token", next_token)


def _core(seconds: Callable[[StepSize], float] = BASE_BOUND, num_drafts: int = 3) -> EngineCore:
    return make_core(CoreSettings(max_draft_tokens=num_drafts), NARROW, seconds)[0]


def _crowd() -> list[Sequence]:
    """Greedy and sampled, with and without end ids, out of three tokens, so that texts repeat themselves by chance."""
    rng = random.Random(3)  # noqa: S311 (a test's choice)
    return [
        make_sequence(
            i,
            [rng.randrange(3) for _ in range(rng.randint(1, 12))],
            rng.randint(1, 40),
            sampling=SamplingParams(0.4 * (i % 2), seed=i),
            end_ids=frozenset({1}) if i % 5 == 0 else frozenset(),
        )
        for i in range(40)
    ]


def test_guesses_change_no_output_greedy_or_sampled() -> None:
    core = _core()
    sequences = _crowd()
    add(core, *sequences)
    run_to_end(core)
    assert all(s.token_ids[s.num_prompt_tokens :] == expected_output(s, 3) for s in sequences)
    for sampled in (False, True):
        kind = [s for s in sequences if (s.sampling.temperature > 0) == sampled]
        assert sum(s.num_accepted_tokens for s in kind) > 20
        assert sum(s.num_draft_tokens - s.num_accepted_tokens for s in kind) > 20


def _periodic_run(core: EngineCore) -> tuple[int, Sequence]:
    # What the taught core has learned first, on a text of its own.
    add(core, make_sequence(0, [2, 1, 2, 2, 0, 0, 1], 24))
    run_to_end(core)
    sequence = make_sequence(1, [0, 1, 2, 2, 1, 0, 0], 50)
    add(core, sequence)
    return run_to_end(core), sequence


@pytest.mark.usefixtures("periodic")
def test_a_text_that_repeats_itself_takes_fewer_steps() -> None:
    plain, without = _periodic_run(_core(num_drafts=0))
    fewer, guessed = _periodic_run(_core())
    assert guessed.token_ids == without.token_ids == ([0, 1, 2, 2, 1, 0, 0] * 9)[:57]
    assert plain == 50
    assert fewer <= 50 * 0.5
    assert guessed.num_accepted_tokens == 50 - fewer, "a step gives one token, and one for each guess that is right"
    assert without.num_draft_tokens == 0


@pytest.mark.usefixtures("periodic")
def test_hardly_a_guess_where_every_token_costs_its_share() -> None:
    """One step in 32 guesses all the same, or nobody would learn that guesses have become cheap."""
    core = _core(TOKEN_BOUND)
    num_steps, sequence = _periodic_run(core)
    assert num_steps >= 50 - 2 * 3
    assert 0 < sequence.num_draft_tokens <= 2 * 3
    engine = core._engine
    assert isinstance(engine, TimedEngine)
    engine.seconds = BASE_BOUND
    sequences = [make_sequence(2 + i, [0, 1, 2, 2, 1, 0, 0], 50) for i in range(8)]
    for sequence in sequences:
        add(core, sequence)
        run_to_end(core)
    assert sequences[-1].num_accepted_tokens > 15


def test_a_text_without_repetition_is_not_guessed_at() -> None:
    core, _ = make_core(CoreSettings(max_draft_tokens=3), SPEC, BASE_BOUND)
    sequence = make_sequence(0, list(range(20)), 40)
    add(core, sequence)
    run_to_end(core)
    text = sequence.token_ids
    repeated = len(text) - 2 - len({tuple(text[i : i + 3]) for i in range(len(text) - 2)})
    assert sequence.num_draft_tokens <= 3 * repeated


def test_acceptance_is_what_an_onlooker_counts() -> None:
    core = _core()
    sequences = _crowd()
    add(core, *sequences)
    texts = {s: s.token_ids + expected_output(s, 3) for s in sequences}
    proposed, right = dict.fromkeys(sequences, 0), dict.fromkeys(sequences, 0)
    while core.scheduler.waiting or core.scheduler.running:
        starts = {s: s.num_tokens for s in sequences}
        for sequence, _, _, draft_ids, _ in core.step().output.chunks:
            proposed[sequence] += len(draft_ids)
            # One that is right is worth a token after it, so the last token of a text is nobody's.
            wanted = texts[sequence][starts[sequence] : -1]
            right[sequence] += len(
                list(takewhile(lambda pair: pair[0] == pair[1], zip(draft_ids, wanted, strict=False)))
            )
    assert {s: s.num_draft_tokens for s in sequences} == proposed
    assert {s: s.num_accepted_tokens for s in sequences} == right
    assert sum(right.values()) > 50


def test_guesses_keep_to_the_token_budget_and_to_max_tokens() -> None:
    core, _ = make_core(CoreSettings(max_draft_tokens=9), replace(NARROW, max_num_tokens=6), BASE_BOUND)
    sequences = _crowd()
    add(core, *sequences)
    most = 0
    while core.scheduler.waiting or core.scheduler.running:
        starts = {s: s.num_tokens for s in sequences}
        output = core.step().output
        assert output.num_tokens <= 6
        assert all(starts[chunk.sequence] + len(chunk.draft_ids) < chunk.sequence.max_len for chunk in output.chunks)
        most = max(most, *(len(chunk.draft_ids) for chunk in output.chunks))
    assert most >= 3


@settings(deadline=None)
@given(st.lists(st.integers(0, 2), min_size=3, max_size=40), st.integers(1, 6))
def test_a_guess_continues_the_last_earlier_occurrence(text: list[int], num_tokens: int) -> None:
    lookup = PromptLookup()
    # Growing by parts and at once give the same index.
    lookup.propose(text[: len(text) // 2], 1)
    ends = [end for end in range(3, len(text)) if text[end - 3 : end] == text[-3:]]
    expected = []
    if ends:
        grown = list(text)
        for index in range(num_tokens):
            grown.append(grown[ends[-1] + index])
        expected = grown[len(text) :]
    assert lookup.propose(text, num_tokens) == expected


def test_acceptance_follows_what_is_seen_and_forgets_without_guesses() -> None:
    lookup = PromptLookup()
    rng = random.Random(1)  # noqa: S311 (a test's choice)
    estimates = []
    for number in range(2000):
        right = 0
        while right < 3 and rng.random() < 0.8:
            right += 1
        lookup.judged(3, right)
        if number > 100:
            estimates.append(lookup.acceptance)
    assert np.mean(estimates) == pytest.approx(0.8, abs=0.03)
    for _ in range(40):
        lookup.judged(3, 0)
    assert lookup.acceptance < 0.05
    for _ in range(500):
        lookup.passed()
    assert lookup.acceptance == pytest.approx(0.5, abs=0.01), "a text that changes is tried again"


@settings(deadline=None)
@given(st.floats(0, 1), st.floats(0, 1), st.integers(0, 8))
def test_how_far_a_guess_is_worth_its_cost(acceptance: float, threshold: float, most: int) -> None:
    """Brute force: the longest run of guesses that is all right with a probability above the threshold."""
    count = worthwhile(acceptance, threshold, most)
    by_hand = max([0, *(k for k in range(1, most + 1) if acceptance**k > threshold)])
    if all(abs(acceptance**k - threshold) > 1e-9 for k in range(1, most + 1)):
        assert count == by_hand
    assert 0 <= count <= most
