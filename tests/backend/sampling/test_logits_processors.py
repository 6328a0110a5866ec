"""What is done to logits before a token is drawn, to the last bit."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from collections.abc import Sequence as Tables
from typing import Any

import numpy as np
import pytest
import torch
from transformers import RepetitionPenaltyLogitsProcessor

from tests.backend.sampling.test_sampling_reference import edited, next_row, sequence_of
from trident_backend.engine.host_logits import HostLogits
from trident_backend.engine.numpy_kernels import NumpyKernels
from trident_backend.engine.protocol import FloatArray, Indices, RowPenalties
from trident_backend.sampling.logits_processors import LogitsProcessors
from trident_backend.sampling.sampling_rows import row_traits
from trident_backend.sequences.guide import RowMasks
from trident_backend.sequences.sampling_params import SamplingParams
from trident_backend.sequences.sequence import Sequence
from trident_backend.sequences.steps import Row

VOCAB = 70


def _apply(rows: list[Row], masks: RowMasks | None = None, edits: LogitsProcessors | None = None) -> FloatArray:
    logits = np.random.default_rng(len(rows)).normal(0, 3, (len(rows), VOCAB)).astype(np.float32)
    changed = logits.copy()
    (edits or LogitsProcessors(VOCAB)).apply(HostLogits(changed, NumpyKernels()), rows, row_traits(rows), masks)
    for number, row in enumerate(rows):
        allowed = None
        if masks is not None and number in masks.rows:
            words = masks.words[masks.rows.tolist().index(number)]
            allowed = np.array([bool(words[t // 32] >> np.uint32(t % 32) & np.uint32(1)) for t in range(VOCAB)])
        np.testing.assert_array_equal(changed[number], edited(logits[number], row, allowed))
    return changed


def test_logits_processors_penalties_follow_a_growing_sequence() -> None:
    params = SamplingParams(repetition_penalty=1.7, presence_penalty=0.3, frequency_penalty=0.2)
    sequences = [sequence_of(params, [1, 2, 3, 2]), sequence_of(SamplingParams(), [1]), sequence_of(params, [9])]
    rng, edits = np.random.default_rng(0), LogitsProcessors(VOCAB)
    for _ in range(40):
        _apply([next_row(sequence) for sequence in sequences], edits=edits)
        for sequence in sequences:
            sequence.token_ids += rng.integers(0, 12, rng.integers(0, 4)).tolist()


@pytest.mark.parametrize("penalty", [1.3, 0.6])
def test_logits_processors_the_repetition_penalty_is_transformers_to_the_last_bit(penalty: float) -> None:
    """Whatever the logit's sign, at both zeros, and where it is banned already."""
    rng = np.random.default_rng(0)
    prompt, output = rng.integers(0, VOCAB, 40).tolist(), rng.integers(0, VOCAB, 20).tolist()
    logits = rng.normal(0, 3, (1, VOCAB)).astype(np.float32)
    logits[0, [prompt[0], prompt[1], output[0], 7]] = 0.0, -0.0, -np.inf, -1e-38
    expected = RepetitionPenaltyLogitsProcessor(penalty)(torch.tensor([prompt + output]), torch.from_numpy(logits))
    row = next_row(sequence_of(SamplingParams(repetition_penalty=penalty), prompt, output))
    LogitsProcessors(VOCAB).apply(HostLogits(logits, NumpyKernels()), [row], row_traits([row]), None)
    np.testing.assert_array_equal(logits.view(np.int32), expected.numpy().view(np.int32))


def test_logits_processors_a_step_does_no_python_work_for_tokens_seen_before() -> None:
    """Neither calls nor lines grow with the prompts: 100 tokens in each or 5000."""
    params = SamplingParams(repetition_penalty=1.2, presence_penalty=0.1, frequency_penalty=0.1)
    costs = []
    for num_tokens in (100, 5000):
        edits, logits = LogitsProcessors(6000), HostLogits(np.ones((4, 6000), np.float32), NumpyKernels())
        sequences = [sequence_of(params, list(range(num_tokens)), [1]) for _ in range(4)]
        rows = [next_row(sequence) for sequence in sequences]
        edits.apply(logits, rows, row_traits(rows), None)
        for sequence in sequences:
            sequence.token_ids.append(2)
        rows = [next_row(sequence) for sequence in sequences]
        costs.append(_num_events(lambda: edits.apply(logits, rows, row_traits(rows), None)))  # noqa: B023 (called at once)
    assert costs[0] == costs[1]


def test_logits_processors_without_a_repetition_penalty_prompts_are_not_looked_at() -> None:
    sequence = sequence_of(SamplingParams(frequency_penalty=0.5), list(range(60)), [61, 61])
    looked_at: list[RowPenalties] = []

    class Noting(HostLogits):
        def penalise(self, rows: Indices, penalties: Tables[RowPenalties]) -> None:
            looked_at.extend(penalties)
            super().penalise(rows, penalties)

    logits = np.zeros((1, VOCAB), np.float32)
    rows = [next_row(sequence)]
    LogitsProcessors(VOCAB).apply(Noting(logits, NumpyKernels()), rows, row_traits(rows), None)
    assert [penalties.ids.tolist() for penalties in looked_at] == [[61]]
    assert {token_id: logits[0, token_id] for token_id in np.flatnonzero(logits[0])} == {61: -1.0}


def _num_events(work: Callable[[], object]) -> int:
    """Calls, of Python's and of C's functions, and lines."""
    count = 0

    def note(*_: object) -> Any:
        nonlocal count
        count += 1
        return note

    before = sys.getprofile(), sys.gettrace()
    sys.setprofile(note)
    sys.settrace(note)
    try:
        work()
    finally:
        sys.setprofile(before[0])
        sys.settrace(before[1])
    return count


@pytest.mark.parametrize(
    ("word", "tokens", "is_banned"),
    [
        ((5,), [1], True),
        ((4, 5), [4, 1], False),
        ((4, 5), [1, 4], True),
        ((3, 4, 5), [3, 4], True),
        ((3, 4, 5), [4], False),
        ((4, 4, 5), [4, 4], True),
        ((5, 5), [5, 1], False),
    ],
)
def test_logits_processors_a_bad_word_is_banned_where_only_its_last_token_is_missing(
    word: tuple[int, ...], tokens: list[int], is_banned: bool
) -> None:
    params = SamplingParams(bad_words=(word, (60, 61)))
    for split in range(1, len(tokens) + 1):
        # In the prompt, in the output, or among draft tokens.
        for num_drafts in range(len(tokens) - split + 1):
            drafts = tuple(tokens[len(tokens) - num_drafts :])
            sequence = sequence_of(params, tokens[:split], tokens[split : len(tokens) - num_drafts])
            changed = _apply([Row(sequence, len(tokens), drafts)])
            assert np.isneginf(changed[0]).tolist() == [is_banned and token_id == 5 for token_id in range(VOCAB)]


def test_logits_processors_ends_are_banned_until_the_output_is_long_enough() -> None:
    ends = {"end_ids": frozenset({2, 1000}), "stop_ids": frozenset({3, VOCAB})}
    for num_output_tokens, num_drafts, is_banned in (
        (0, 0, True),
        (3, 0, True),
        (2, 1, True),
        (4, 0, False),
        (2, 2, False),
    ):
        sequence = sequence_of(SamplingParams(min_tokens=4), [1] * 9, [1] * num_output_tokens)
        sequence.end_ids, sequence.stop_ids = ends["end_ids"], ends["stop_ids"]
        logits = np.zeros((1, VOCAB), np.float32)
        row = Row(sequence, sequence.num_tokens + num_drafts, (1,) * num_drafts)
        LogitsProcessors(VOCAB).apply(HostLogits(logits, NumpyKernels()), [row], row_traits([row]), None)
        assert np.flatnonzero(np.isneginf(logits[0])).tolist() == ([2, 3] if is_banned else [])


def test_logits_processors_a_bias_of_minus_100_bans_its_token() -> None:
    row = next_row(sequence_of(SamplingParams(logit_bias=((1, -100.0), (2, -99.5), (3, 100.0))), [1]))
    logits = np.full((1, VOCAB), 1000, np.float32)
    LogitsProcessors(VOCAB).apply(HostLogits(logits, NumpyKernels()), [row], row_traits([row]), None)
    assert logits[0, :4].tolist() == [1000, -np.inf, 900.5, 1100]
    _apply([row, next_row(sequence_of(SamplingParams(logit_bias=((4, -100.0),), log_probs=True), [1]))], None)


def test_logits_processors_masks_of_some_rows_ban_what_their_bits_do_not_allow() -> None:
    rng = np.random.default_rng(1)
    rows = [next_row(sequence_of(SamplingParams(logit_bias=((1, 2.0),)), [1])) for _ in range(8)]
    for numbers in ([0], [7], [0, 1, 2], [1, 2, 5, 7], list(range(8)), []):
        words = rng.integers(0, 2**32, (len(numbers), 3), dtype=np.uint32)
        _apply(rows, RowMasks(np.array(numbers, np.intp), words))


def test_logits_processors_rows_that_score_are_left_as_they_are() -> None:
    params = SamplingParams(repetition_penalty=2.0, logit_bias=((1, 5.0),), bad_words=((2,),), min_tokens=9)
    sequence = sequence_of(params, [1, 2, 3])
    logits = np.ones((3, VOCAB), np.float32)
    rows = [Row(sequence, 1), Row(sequence, 2), Row(sequence, 3)]
    LogitsProcessors(VOCAB).apply(HostLogits(logits, NumpyKernels()), rows, row_traits(rows), None)
    assert (logits[:2] == 1).all()
    assert not (logits[2] == 1).all()


def test_logits_processors_what_is_known_of_a_sequence_goes_with_it() -> None:
    edits = LogitsProcessors(VOCAB)
    rows = [next_row(sequence_of(SamplingParams(bad_words=((2,),)), [1]))]
    edits.apply(HostLogits(np.zeros((1, VOCAB), np.float32), NumpyKernels()), rows, row_traits(rows), None)
    assert any(isinstance(each, Sequence) for each in edits._biases)
    rows.clear()
    gc.collect()
    assert not len(edits._biases)
