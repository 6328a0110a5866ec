"""Draws against their distribution, and what they may depend on."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest

from tests.backend.sampling.test_sampling_reference import filtered, next_row, sequence_of
from trident_backend.engine.host_logits import HostLogits, VocabularyKernels
from trident_backend.engine.numpy_kernels import NumpyKernels
from trident_backend.engine.protocol import FloatArray
from trident_backend.sampling.inversion import invert
from trident_backend.sampling.sampler import Sampler
from trident_backend.sampling.sampling_rows import pack
from trident_backend.sequences.choices import NO_TOKEN, NOT_FINITE
from trident_backend.sequences.sampling_params import SamplingParams
from trident_backend.sequences.sequence import Sequence
from trident_backend.sequences.steps import Row

#: Two chunks of the vocabulary and a bit.
VOCAB = 600


def sample(logits: FloatArray, sequences: list[Sequence], kernels: VocabularyKernels | None = None) -> list[int]:
    """The next token of each."""
    step_logits = HostLogits(logits.copy(), kernels or NumpyKernels())
    return Sampler(logits.shape[1]).choose(step_logits, [next_row(sequence) for sequence in sequences]).token_ids


def sample_one(
    logits: FloatArray, params: SamplingParams, num_draws: int, kernels: VocabularyKernels | None = None
) -> npt.NDArray[np.int64]:
    """How often each token comes, of one row of logits and many seeds, in steps of 500 rows."""
    counts = np.zeros(len(logits), np.int64)
    for start in range(0, num_draws, 500):
        sequences = [sequence_of(replace(params, seed=start + seed), [1, 2, 3]) for seed in range(500)]
        counts += np.bincount(sample(np.tile(logits, (500, 1)), sequences, kernels), minlength=len(logits))
    return counts


def check_distribution(counts: npt.NDArray[np.int64], expected: npt.NDArray[np.float64]) -> None:
    """A chi-squared test at a false-alarm rate of 1e-6 (threshold by Laurent and Massart's bound, x = ln 1e6)."""
    num_draws = counts.sum()
    assert counts[expected == 0].sum() == 0
    # Rare tokens are pooled, so that every cell expects enough draws for the statistic to hold.
    common = expected * num_draws >= 10
    observed = np.append(counts[common], counts[~common].sum())
    wanted = np.append(expected[common], expected[~common].sum()) * num_draws
    observed, wanted = observed[wanted > 0], wanted[wanted > 0]
    statistic = ((observed - wanted) ** 2 / wanted).sum()
    freedom, x = len(wanted) - 1, np.log(1e6)
    assert statistic <= freedom + 2 * np.sqrt(freedom * x) + 2 * x


FILTERS = [
    SamplingParams(1.0),
    SamplingParams(0.6, top_k=7),
    SamplingParams(1.3, top_p=0.8),
    SamplingParams(1.0, top_p=0.2),
    SamplingParams(1.0, min_p=0.1),
    SamplingParams(1.5, top_p=0.7, min_p=0.02),
    SamplingParams(0.9, top_k=12, top_p=0.7),
    SamplingParams(2.0, top_k=300, top_p=0.9, min_p=0.01),
]


@pytest.mark.slow
@pytest.mark.parametrize("shape", ["smooth", "with equals", "all equal"])
@pytest.mark.parametrize("params", FILTERS)
def test_sampling_draws_follow_their_distribution(params: SamplingParams, shape: str) -> None:
    logits = np.random.default_rng(3).normal(0, 2, VOCAB).astype(np.float32)
    if shape == "with equals":
        logits = np.round(logits)
    if shape == "all equal":
        # A share of 600 tokens may end at a token exactly, and rounding then decides: 599 leave no doubt.
        logits = np.zeros(VOCAB - 1, np.float32)
    check_distribution(sample_one(logits, params, 8_000), filtered(logits, params))


def check_large_vocabulary(kernels: VocabularyKernels) -> None:
    """100 000 draws from 128 256 tokens, nearly evenly likely, counted by chunk and by the place in a chunk."""
    vocab_size, num_draws = 128_256, 100_000
    logits = np.where(np.arange(vocab_size) % 2, 0.0, -0.1).astype(np.float32)[None]
    masses = kernels.chunk_exp_sums(logits, np.zeros(1, np.float32), np.ones(1, np.float32)).astype(np.float64)
    counts = np.zeros(vocab_size, np.int64)
    for start in range(0, num_draws, 5000):
        rows = [next_row(sequence_of(SamplingParams(1.0, seed=start + seed), [1])) for seed in range(5000)]
        numbers = np.arange(5000)
        drawing = pack(rows, numbers, np.ones(5000, np.int64), np.zeros(5000, np.float32), vocab_size)
        same_row = drawing._replace(rows=np.zeros(5000, np.intp))
        tokens = invert(HostLogits(logits, kernels), same_row, np.repeat(masses, 5000, axis=0), drawing.uniforms())
        counts += np.bincount(tokens, minlength=vocab_size)
    weights = np.exp(logits[0].astype(np.float64)).reshape(501, 256)
    for axis in (0, 1):
        check_distribution(counts.reshape(501, 256).sum(axis=axis), weights.sum(axis=axis) / weights.sum())


@pytest.mark.slow
def test_sampling_a_large_flat_vocabulary_is_drawn_from_evenly_to_its_end() -> None:
    check_large_vocabulary(NumpyKernels())


def test_sampling_greedy_is_argmax_and_top_k_one_is_greedy() -> None:
    logits = np.random.default_rng(0).normal(size=(8, VOCAB)).astype(np.float32)
    greedy = [sequence_of(SamplingParams(), [1]) for _ in range(8)]
    narrow = [sequence_of(SamplingParams(1.0, top_k=1, seed=seed), [1]) for seed in range(8)]
    assert sample(logits, greedy) == sample(logits, narrow) == logits.argmax(1).tolist()


@pytest.mark.parametrize("temperature", [1e-300, 1e-30, 1e-3])
def test_sampling_near_zero_temperature_is_greedy_but_among_equals(temperature: float) -> None:
    logits = np.random.default_rng(0).normal(size=(40, VOCAB)).astype(np.float32)
    logits[20:, [5, 300, 599]] = 9.0
    tokens = sample(logits, [sequence_of(SamplingParams(temperature, seed=seed), [1]) for seed in range(40)])
    assert tokens[:20] == logits[:20].argmax(1).tolist()
    assert set(tokens[20:]) == {5, 300, 599}


def test_sampling_an_endless_temperature_draws_from_all_that_is_allowed() -> None:
    logits = np.random.default_rng(0).normal(size=(1, VOCAB)).astype(np.float32)
    logits[0, 10:] = -np.inf
    counts = sample_one(logits[0], SamplingParams(1e300), 5000)
    check_distribution(counts, np.where(np.arange(VOCAB) < 10, 0.1, 0))


def test_sampling_a_draw_depends_on_seed_index_and_place_alone() -> None:
    logits = np.random.default_rng(1).normal(size=VOCAB).astype(np.float32)
    one = sequence_of(SamplingParams(1.0, seed=2**64 - 1), [1] * 9)
    alone = sample(logits[None], [one])
    others = [sequence_of(SamplingParams(1.5, seed=seed), [1] * seed) for seed in range(1, 6)]
    crowd = sample(np.tile(logits, (6, 1)), [*others[:3], one, *others[3:]])
    assert crowd[3] == alone[0]
    places = [sequence_of(SamplingParams(1.0, seed=5), [1] * place) for place in range(1, 40)]
    assert len(set(sample(np.tile(logits, (39, 1)), places))) > 20, "every place draws anew"
    indices = [sequence_of(SamplingParams(1.0, seed=5, index=index), [1]) for index in range(39)]
    assert len(set(sample(np.tile(logits, (39, 1)), indices))) > 20, "every sequence of a request draws anew"


def test_sampling_a_row_that_allows_nothing_or_is_no_number_leaves_its_neighbours_alone() -> None:
    logits = np.random.default_rng(2).normal(size=(8, VOCAB)).astype(np.float32)
    params = [
        SamplingParams(temperature, top_k, top_p)
        for temperature, top_k, top_p in ((0, 0, 1), (1, 0, 1), (1, 9, 1), (1, 0, 0.9))
    ]
    ids = np.arange(VOCAB)
    for broken in (np.full(VOCAB, -np.inf), np.where(ids == 7, np.nan, 0), np.where(ids == 8, np.inf, 0)):
        for order in (slice(None), slice(None, None, -1)):
            sequences = [sequence_of(each, [1]) for each in [*params, *params]][order]
            rows = logits.copy()
            rows[1::2] = broken.astype(np.float32)
            tokens = sample(rows, sequences)
            assert tokens[1::2] == [NO_TOKEN if np.isneginf(broken).all() else NOT_FINITE] * 4
            assert tokens[::2] == sample(logits, sequences)[::2]


def test_sampling_choose_samples_after_draft_tokens_as_if_the_sequence_had_come_there() -> None:
    """Draft tokens ask for several positions of one sequence at once; each must be what a step of its own gives."""
    logits = np.random.default_rng(2).normal(size=(4, VOCAB)).astype(np.float32)
    params = SamplingParams(
        1.0, seed=8, repetition_penalty=1.5, frequency_penalty=0.7, bad_words=((7,), (4, 9), (3, 4, 5))
    )
    drafts = (3, 4, 4)
    sequence = sequence_of(params, [1] * 6, [2])
    rows = [Row(sequence, 7 + index, drafts[:index]) for index in range(4)]
    together = Sampler(VOCAB).choose(HostLogits(logits.copy(), NumpyKernels()), rows).token_ids
    stepwise = [sequence_of(params, [1] * 6, [2, *drafts[:index]]) for index in range(4)]
    assert together == sample(logits, stepwise)
