"""What is done to logits before a token is drawn, to the last bit."""

from __future__ import annotations

import gc

import numpy as np
import pytest

from tests.backend.test_sampling_reference import edited, next_row, sequence_of
from trident_backend.engine.host_logits import HostLogits
from trident_backend.engine.numpy_kernels import NumpyKernels
from trident_backend.engine.protocol import FloatArray
from trident_backend.guide import RowMasks
from trident_backend.sampling.edits import Edits
from trident_backend.sequence import SamplingParams, Sequence
from trident_backend.steps import Row

VOCAB = 70


def _apply(rows: list[Row], masks: RowMasks | None = None, edits: Edits | None = None) -> FloatArray:
    logits = np.random.default_rng(len(rows)).normal(0, 3, (len(rows), VOCAB)).astype(np.float32)
    changed = logits.copy()
    (edits or Edits(VOCAB)).apply(HostLogits(changed, NumpyKernels()), rows, masks)
    for number, row in enumerate(rows):
        allowed = None
        if masks is not None and number in masks.rows:
            words = masks.words[masks.rows.tolist().index(number)]
            allowed = np.array([bool(words[t // 32] >> np.uint32(t % 32) & np.uint32(1)) for t in range(VOCAB)])
        np.testing.assert_array_equal(changed[number], edited(logits[number], row, allowed))
    return changed


def test_penalties_follow_a_growing_sequence() -> None:
    params = SamplingParams(repetition_penalty=1.7, presence_penalty=0.3, frequency_penalty=0.2)
    sequences = [sequence_of(params, [1, 2, 3, 2]), sequence_of(SamplingParams(), [1]), sequence_of(params, [9])]
    rng, edits = np.random.default_rng(0), Edits(VOCAB)
    for _ in range(40):
        _apply([next_row(sequence) for sequence in sequences], edits=edits)
        for sequence in sequences:
            sequence.token_ids += rng.integers(0, 12, rng.integers(0, 4)).tolist()


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
def test_a_bad_word_is_banned_where_only_its_last_token_is_missing(
    word: tuple[int, ...], tokens: list[int], is_banned: bool
) -> None:
    params = SamplingParams(bad_words=(word, (60, 61)))
    for split in range(1, len(tokens) + 1):
        # In the prompt, in the output, or among guesses.
        for num_drafts in range(len(tokens) - split + 1):
            drafts = tuple(tokens[len(tokens) - num_drafts :])
            sequence = sequence_of(params, tokens[:split], tokens[split : len(tokens) - num_drafts])
            changed = _apply([Row(sequence, len(tokens), drafts)])
            assert np.isneginf(changed[0]).tolist() == [is_banned and token_id == 5 for token_id in range(VOCAB)]


def test_ends_are_banned_until_the_output_is_long_enough() -> None:
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
        Edits(VOCAB).apply(HostLogits(logits, NumpyKernels()), [row], None)
        assert np.flatnonzero(np.isneginf(logits[0])).tolist() == ([2, 3] if is_banned else [])


def test_masks_of_some_rows_ban_what_their_bits_do_not_allow() -> None:
    rng = np.random.default_rng(1)
    rows = [next_row(sequence_of(SamplingParams(logit_bias=((1, 2.0),)), [1])) for _ in range(8)]
    for numbers in ([0], [7], [0, 1, 2], [1, 2, 5, 7], list(range(8)), []):
        words = rng.integers(0, 2**32, (len(numbers), 3), dtype=np.uint32)
        _apply(rows, RowMasks(np.array(numbers, np.intp), words))


def test_rows_that_score_are_left_as_they_are() -> None:
    params = SamplingParams(repetition_penalty=2.0, logit_bias=((1, 5.0),), bad_words=((2,),), min_tokens=9)
    sequence = sequence_of(params, [1, 2, 3])
    logits = np.ones((3, VOCAB), np.float32)
    Edits(VOCAB).apply(HostLogits(logits, NumpyKernels()), [Row(sequence, 1), Row(sequence, 2), Row(sequence, 3)], None)
    assert (logits[:2] == 1).all()
    assert not (logits[2] == 1).all()


def test_what_is_known_of_a_sequence_goes_with_it() -> None:
    edits = Edits(VOCAB)
    rows = [next_row(sequence_of(SamplingParams(bad_words=((2,),)), [1]))]
    edits.apply(HostLogits(np.zeros((1, VOCAB), np.float32), NumpyKernels()), rows, None)
    assert any(isinstance(each, Sequence) for each in edits._fixed)
    rows.clear()
    gc.collect()
    assert not len(edits._fixed)
