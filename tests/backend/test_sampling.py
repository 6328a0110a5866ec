"""Sampling against transformers' logits processors and against the distribution itself."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
import torch
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from tests.backend.doubles import make_sequence
from trident_backend.engine.protocol import FloatArray
from trident_backend.sampling.sampler import Sampler
from trident_backend.sequence import SamplingParams, Sequence
from trident_backend.steps import Row

VOCAB = 50


def _sequence(params: SamplingParams, place: int = 3) -> Sequence:
    sequence = make_sequence(0, [1] * place, 100)
    sequence.sampling = params
    return sequence


def _sample(logits: FloatArray, sequences: list[Sequence]) -> list[int]:
    """The next token of each."""
    return Sampler(VOCAB).choose(logits, [Row(sequence, sequence.num_tokens) for sequence in sequences]).token_ids


def _reference(logits: npt.NDArray[np.float32], params: SamplingParams) -> npt.NDArray[np.float64]:
    scores = torch.from_numpy(logits)[None]
    scores = TemperatureLogitsWarper(params.temperature)(None, scores)
    if params.top_k:
        scores = TopKLogitsWarper(params.top_k)(None, scores)
    if params.top_p < 1:
        scores = TopPLogitsWarper(params.top_p)(None, scores)
    return np.asarray(torch.softmax(scores, -1)[0].double())


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(1.0),
        SamplingParams(0.6, top_k=7),
        SamplingParams(1.3, top_p=0.8),
        SamplingParams(0.9, top_k=12, top_p=0.7),
    ],
)
def test_draws_follow_transformers_distribution(params: SamplingParams) -> None:
    """A chi-squared test at a false-alarm rate of 1e-6 (threshold by Laurent and Massart's bound, x = ln 1e6)."""
    logits = np.random.default_rng(3).normal(0, 2, VOCAB).astype(np.float32)
    expected = _reference(logits, params)
    num_draws = 20_000
    sequences = [_sequence(replace(params, seed=seed)) for seed in range(num_draws)]
    counts = np.bincount(_sample(np.tile(logits, (num_draws, 1)), sequences), minlength=VOCAB)
    assert counts[expected == 0].sum() == 0
    # Rare tokens are pooled, so that every cell expects enough draws for the statistic to hold.
    common = expected * num_draws >= 10
    observed = np.append(counts[common], counts[~common].sum())
    wanted = np.append(expected[common], expected[~common].sum()) * num_draws
    observed, wanted = observed[wanted > 0], wanted[wanted > 0]
    statistic = ((observed - wanted) ** 2 / wanted).sum()
    freedom, x = len(wanted) - 1, np.log(1e6)
    assert statistic <= freedom + 2 * np.sqrt(freedom * x) + 2 * x


def test_greedy_is_argmax_and_top_k_one_is_greedy() -> None:
    logits = np.random.default_rng(0).normal(size=(8, VOCAB)).astype(np.float32)
    greedy = [_sequence(SamplingParams()) for _ in range(8)]
    narrow = [_sequence(SamplingParams(1.0, top_k=1, seed=seed)) for seed in range(8)]
    assert _sample(logits, greedy) == _sample(logits, narrow) == logits.argmax(1).tolist()


def test_a_draw_depends_on_seed_and_place_alone() -> None:
    logits = np.random.default_rng(1).normal(size=VOCAB).astype(np.float32)
    one = _sequence(SamplingParams(1.0, seed=2**64 - 1), place=9)
    alone = _sample(logits[None], [one])
    others = [_sequence(SamplingParams(1.5, seed=seed), place=seed) for seed in range(1, 6)]
    crowd = _sample(np.tile(logits, (6, 1)), [*others[:3], one, *others[3:]])
    assert crowd[3] == alone[0]
    draws = {_sample(logits[None], [_sequence(SamplingParams(1.0, seed=5), place=place)])[0] for place in range(1, 40)}
    assert len(draws) > 5, "every place draws anew"


def test_a_guessed_place_is_drawn_as_if_the_sequence_had_come_there() -> None:
    """Verifying guesses asks for several places of one sequence at once; each must be what a step of its own gives."""
    logits = np.random.default_rng(2).normal(size=(4, VOCAB)).astype(np.float32)
    params = SamplingParams(1.0, seed=8)
    rows = [Row(_sequence(params, place=6), place) for place in range(6, 10)]
    together = Sampler(VOCAB).choose(logits, rows).token_ids
    assert together == [_sample(logits[i : i + 1], [_sequence(params, place=6 + i)])[0] for i in range(4)]
