"""What the sampler's tests hold it against: one row at a time, in plain double precision, by sorting the vocabulary.

The reference itself is held against transformers' logits processors.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from transformers import (
    MinNewTokensLengthLogitsProcessor,
    MinPLogitsWarper,
    NoBadWordsLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from tests.fakes.core import make_sequence
from trident_backend.engine.protocol import FloatArray
from trident_backend.sequences.sampling_params import SamplingParams
from trident_backend.sequences.sequence import Sequence
from trident_backend.sequences.steps import Row

Mask = npt.NDArray[np.bool_]


def sequence_of(params: SamplingParams, prompt: list[int], output: list[int] | None = None, **fields: Any) -> Sequence:
    """A sequence that has come so far."""
    sequence = make_sequence(0, prompt, 1000, sampling=params, **fields)
    sequence.token_ids += output or []
    return sequence


def next_row(sequence: Sequence) -> Row:
    return Row(sequence, sequence.num_tokens)


def edited(logits: FloatArray, row: Row, allowed: Mask | None = None) -> FloatArray:
    """The logits after penalties, biases and bans, in single precision as the sampler's."""
    sequence, params = row.sequence, row.sequence.sampling
    token_ids = [*sequence.token_ids, *row.draft_ids]
    output = token_ids[sequence.num_prompt_tokens :]
    logits = logits.copy()
    for token_id in set(token_ids):
        penalty = np.float32(params.repetition_penalty)
        logits[token_id] = logits[token_id] * penalty if logits[token_id] < 0 else logits[token_id] / penalty
    for token_id in set(output):
        presence, frequency = np.float32(params.presence_penalty), np.float32(params.frequency_penalty)
        logits[token_id] -= presence + frequency * np.float32(output.count(token_id))
    for token_id, bias in params.logit_bias:
        logits[token_id] += np.float32(bias) if bias > -100 else np.float32(-np.inf)
    for *before, last in params.bad_words:
        if token_ids[len(token_ids) - len(before) :] == before:
            logits[last] = -np.inf
    if row.position - sequence.num_prompt_tokens < params.min_tokens:
        logits[[token_id for token_id in sequence.end_ids | sequence.stop_ids if token_id < len(logits)]] = -np.inf
    if allowed is not None:
        logits[~allowed] = -np.inf
    return logits


def filtered(logits: FloatArray, params: SamplingParams) -> npt.NDArray[np.float64]:
    """Probabilities after temperature, top_k, top_p and min_p; of equals the lowest ids are kept."""
    probabilities = np.zeros(len(logits))
    order = np.lexsort((np.arange(len(logits)), -logits))
    if params.temperature == 0:
        probabilities[order[0]] = 1
        return probabilities
    if params.top_k:
        order = order[: params.top_k]
    weights = np.exp((logits[order].astype(np.float64) - logits[order[0]]) / params.temperature)
    if params.top_p < 1:
        shares = weights / weights.sum()
        kept = np.cumsum(shares) - shares < params.top_p
        order, weights = order[kept], weights[kept]
    weights[weights < params.min_p * weights[0]] = 0
    probabilities[order] = weights / weights.sum()
    return probabilities


@pytest.mark.parametrize("seed", range(5))
def test_sampling_reference_the_reference_filters_as_transformers_does(seed: int) -> None:
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 3, 600).astype(np.float32)
    params = SamplingParams(
        float(rng.uniform(0.3, 2)), int(rng.integers(2, 200)), float(rng.uniform(0.3, 1)), float(rng.uniform(0, 0.2))
    )
    scores = torch.from_numpy(logits)[None]
    for warper in (
        TemperatureLogitsWarper(params.temperature),
        TopKLogitsWarper(params.top_k),
        TopPLogitsWarper(params.top_p),
        MinPLogitsWarper(params.min_p),
    ):
        scores = warper(None, scores)
    expected = torch.softmax(scores, -1)[0].double().numpy()
    np.testing.assert_allclose(filtered(logits, params), expected, atol=1e-6)
    assert ((filtered(logits, params) > 0) == (expected > 0)).all()


@pytest.mark.parametrize("seed", range(5))
def test_sampling_reference_the_reference_edits_as_transformers_does(seed: int) -> None:
    rng = np.random.default_rng(seed)
    prompt, output = rng.integers(0, 40, 20).tolist(), rng.integers(0, 40, 10).tolist()
    words = ((3,), (7, 9), (*output[-2:], 11), (output[-1], 12), (1, output[-1], 13))
    biases = ((5, 2.5), (output[0], -1.0))
    logits = rng.normal(0, 3, 50).astype(np.float32)
    ids, scores = torch.tensor([prompt + output]), torch.from_numpy(logits)[None]
    for processor in (
        RepetitionPenaltyLogitsProcessor(1.3),
        SequenceBiasLogitsProcessor([[[token_id], bias] for token_id, bias in biases]),
        NoBadWordsLogitsProcessor([list(word) for word in words]),
        MinNewTokensLengthLogitsProcessor(len(prompt), 11, [2, 4]),
    ):
        scores = processor(ids, scores)
    params = SamplingParams(repetition_penalty=1.3, logit_bias=biases, bad_words=words, min_tokens=11)
    row = next_row(sequence_of(params, prompt, output, end_ids=frozenset({2}), stop_ids=frozenset({4})))
    np.testing.assert_allclose(edited(logits, row), scores[0].numpy(), rtol=1e-6)
    long_enough = replace(params, min_tokens=10)
    row.sequence.sampling = long_enough
    assert np.isfinite(edited(logits, row)[[2, 4]]).all()


def test_sampling_reference_the_reference_penalises_as_openai_describes() -> None:
    """`mu[j] - c[j] * frequency - (c[j] > 0) * presence`, over the output alone."""
    rng = np.random.default_rng(0)
    logits, output = rng.normal(0, 3, 50).astype(np.float32), rng.integers(0, 9, 30).tolist()
    counts = np.bincount(output, minlength=50)
    row = next_row(sequence_of(SamplingParams(presence_penalty=0.5, frequency_penalty=-0.25), [40, 41], output))
    np.testing.assert_allclose(edited(logits, row), logits - counts * -0.25 - (counts > 0) * 0.5, rtol=1e-5)
