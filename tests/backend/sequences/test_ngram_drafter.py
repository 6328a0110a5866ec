"""Draft tokens: never in the output unless chosen, proposed where they pay, counted as an onlooker would."""

from __future__ import annotations

import random
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from itertools import takewhile

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fakes.core import SPEC, TimedEngine, add, expected_output, linear, make_core, make_sequence, run_to_end
from trident_backend.core import EngineCore
from trident_backend.scheduling.speculation import worthwhile
from trident_backend.sequences.ngram_drafter import IndexRoom, NgramDrafter
from trident_backend.sequences.sampling_params import SamplingParams
from trident_backend.sequences.sequence import Sequence
from trident_backend.sequences.step_time import StepSize
from trident_ensemble.contract.settings import CoreSettings

NARROW = replace(SPEC, vocab_size=3)
BASE_BOUND, TOKEN_BOUND = linear(0.01, 1e-5), linear(0.0, 0.001)
PERIOD = 7
PIECES = st.integers(1, 20)


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


def test_ngram_drafter_draft_tokens_change_no_output_greedy_or_sampled() -> None:
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
def test_ngram_drafter_a_text_that_repeats_itself_takes_fewer_steps() -> None:
    plain, without = _periodic_run(_core(num_drafts=0))
    fewer, drafted = _periodic_run(_core())
    assert drafted.token_ids == without.token_ids == ([0, 1, 2, 2, 1, 0, 0] * 9)[:57]
    assert plain == 50
    assert fewer <= 50 * 0.5
    assert drafted.num_accepted_tokens == 50 - fewer, (
        "a step gives one token, and one for each draft token that is accepted"
    )
    assert without.num_draft_tokens == 0


@pytest.mark.usefixtures("periodic")
def test_ngram_drafter_draft_tokens_are_rare_where_every_token_costs_its_share() -> None:
    """One step in 32 has one all the same, or it would never be learned that they have become cheap."""
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


def test_ngram_drafter_a_text_without_repetition_gets_no_draft_tokens() -> None:
    core, _ = make_core(CoreSettings(max_draft_tokens=3), SPEC, BASE_BOUND)
    sequence = make_sequence(0, list(range(20)), 40)
    add(core, sequence)
    run_to_end(core)
    text = sequence.token_ids
    repeated = len(text) - 2 - len({tuple(text[i : i + 3]) for i in range(len(text) - 2)})
    assert sequence.num_draft_tokens <= 3 * repeated


def test_ngram_drafter_acceptance_is_what_an_onlooker_counts() -> None:
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


def test_ngram_drafter_draft_tokens_keep_to_the_token_budget_and_to_max_tokens() -> None:
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


def _by_search(text: list[int], num_tokens: int, first: int = 0) -> list[int]:
    """What followed the last earlier occurrence of the last three tokens, from the place `first` on."""
    ends = [end for end in range(first + 3, len(text)) if text[end - 3 : end] == text[-3:]]
    if len(text) < 3 or not ends:
        return []
    grown = list(text)
    for index in range(num_tokens):
        grown.append(grown[ends[-1] + index])
    return grown[len(text) :]


@settings(deadline=None)
@given(st.lists(st.integers(0, 2), max_size=40), st.integers(1, 6), st.lists(st.tuples(st.integers(0, 40), PIECES)))
def test_ngram_drafter_propose_continues_the_last_earlier_occurrence(
    text: list[int], num_tokens: int, growth: list[tuple[int, int]]
) -> None:
    """However the text has grown, and in whatever pieces it was indexed."""
    drafter = NgramDrafter()
    for length, num_ngrams in sorted(growth):
        assert drafter.index(text[:length], num_ngrams) <= num_ngrams
    num_left = len(text)
    while num := drafter.index(text, 5):
        num_left -= num
    assert num_left >= 0
    assert drafter.propose(text, num_tokens) == _by_search(text, num_tokens)


def test_ngram_drafter_propose_gives_nothing_before_all_of_a_text_is_indexed() -> None:
    text, drafter = [1, 2, 3, 4] * 10, NgramDrafter()
    drafter.index(text, len(text) - 3 - 1)
    assert drafter.propose(text, 2) == []
    assert drafter.index(text, 5) == 1
    assert drafter.propose(text, 2) == [1, 2]


@settings(deadline=None)
@given(st.lists(st.integers(0, 3), min_size=3, max_size=200), st.integers(1, 12), PIECES)
def test_ngram_drafter_of_a_long_text_the_last_part_is_known(text: list[int], max_half: int, piece: int) -> None:
    """All of the last `max_half` n-grams at least, never more than twice as many."""
    room = IndexRoom(num_ngrams=1000, max_half=max_half)
    drafter = NgramDrafter(room)
    while drafter.index(text, piece):
        assert 1000 - room.num_left <= 2 * max_half
    draft_ids = drafter.propose(text, 3)
    recent = _by_search(text, 3, first=max(0, len(text) - 3 - max_half))
    assert draft_ids in (recent, _by_search(text, 3))
    assert draft_ids == recent or not recent


@settings(deadline=None)
@given(st.integers(1, 60), st.lists(st.tuples(st.integers(0, 4), st.integers(0, 30), PIECES), max_size=60))
def test_ngram_drafter_sequences_share_room_and_give_it_back(
    num_ngrams: int, history: list[tuple[int, int, int]]
) -> None:
    rng = random.Random(0)  # noqa: S311 (a test's choice)
    room = IndexRoom(num_ngrams, max_half=20)
    drafters = [NgramDrafter(room) for _ in range(4)]
    texts: list[list[int]] = [[] for _ in drafters]
    for number, num_tokens, piece in history:
        if number == 4:
            closed = num_tokens % 4
            drafters[closed].close()
            drafters[closed], texts[closed] = NgramDrafter(room), []
            continue
        texts[number] += [rng.randrange(9) for _ in range(num_tokens)]
        drafters[number].index(texts[number], piece)
        assert room.num_left == num_ngrams - sum(len(each._older) + len(each._newer) for each in drafters) >= 0
        for drafter, text in zip(drafters, texts, strict=True):
            draft_ids = drafter.propose(text, 1)
            assert draft_ids in ([], *([text[end]] for end in range(3, len(text)) if text[end - 3 : end] == text[-3:]))
    for drafter in drafters:
        drafter.close()
    assert room.num_left == num_ngrams


def test_ngram_drafter_a_step_indexes_a_piece_of_a_long_prompt_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    """The prompt is computed in few steps beside streams that go on with draft tokens, and takes many to be indexed."""
    monkeypatch.setattr("trident_backend.scheduling.speculation.MAX_INDEXED", 10)
    indexed: dict[NgramDrafter, list[int]] = {}
    index = NgramDrafter.index

    def counting(drafter: NgramDrafter, token_ids: list[int], num_ngrams: int) -> int:
        num = index(drafter, token_ids, num_ngrams)
        indexed.setdefault(drafter, []).append(num)
        return num

    monkeypatch.setattr(NgramDrafter, "index", counting)
    core, _ = make_core(
        CoreSettings(max_draft_tokens=2),
        replace(NARROW, num_blocks=200, max_num_tokens=40, max_seq_len=160),
        BASE_BOUND,
    )
    streams = [make_sequence(i, [i, 1, 2, 0], 40) for i in range(3)]
    add(core, *streams)
    for _ in range(8):
        core.step()
    long = make_sequence(9, [number % 3 for number in range(96)], 32)
    add(core, long)
    drafter = long.drafter
    assert drafter is not None
    while long.finish_reason is None:
        before = {each: len(pieces) for each, pieces in indexed.items()}
        core.step()
        pieces = [num for each, found in indexed.items() for num in found[before.get(each, 0) :]]
        # Of prompts, of streams' texts, and what four streams may have got since the last step.
        assert sum(pieces) <= 10 + 10 + 4 * 3
    assert max(indexed[drafter]) <= 10 + 4 * 3
    assert sum(indexed[drafter]) >= 96 - 3
    assert long.num_accepted_tokens > 0
    run_to_end(core)
    assert core.scheduler._speculation._index_room.num_left == IndexRoom().num_left


@pytest.mark.slow
def test_ngram_drafter_what_a_long_text_takes_is_bounded() -> None:
    """By what is allocated: 64k n-grams at most are kept, of a text of any length."""
    rng = random.Random(0)  # noqa: S311 (a test's choice)
    text = [rng.randrange(100_000) for _ in range(200_000)]
    drafter = NgramDrafter()
    tracemalloc.start()
    try:
        while drafter.index(text, 1024):
            pass
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 12 << 20


def test_ngram_drafter_acceptance_follows_what_is_seen_and_decays_without_draft_tokens() -> None:
    drafter = NgramDrafter()
    rng = random.Random(1)  # noqa: S311 (a test's choice)
    estimates = []
    for number in range(2000):
        right = 0
        while right < 3 and rng.random() < 0.8:
            right += 1
        drafter.observe(3, right)
        if number > 100:
            estimates.append(drafter.acceptance)
    assert np.mean(estimates) == pytest.approx(0.8, abs=0.03)
    for _ in range(40):
        drafter.observe(3, 0)
    assert drafter.acceptance < 0.05
    for _ in range(500):
        drafter.decay()
    assert drafter.acceptance == pytest.approx(0.5, abs=0.01), "a text that changes is tried again"


@settings(deadline=None)
@given(st.floats(0, 1), st.floats(0, 1), st.integers(0, 8))
def test_ngram_drafter_worthwhile_is_how_far_draft_tokens_earn_their_cost(
    acceptance: float, threshold: float, most: int
) -> None:
    """Brute force: the longest run of draft tokens all accepted with a probability above the threshold."""
    count = worthwhile(acceptance, threshold, most)
    by_hand = max([0, *(k for k in range(1, most + 1) if acceptance**k > threshold)])
    if all(abs(acceptance**k - threshold) > 1e-9 for k in range(1, most + 1)):
        assert count == by_hand
    assert 0 <= count <= most
