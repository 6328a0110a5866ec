"""The vocabulary's kernels: OpenVINO's against numpy's, numpy's against torch, and sampling on OpenVINO's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.backend.sampling.test_sampling import FILTERS, check_distribution, check_large_vocabulary, sample_one
from tests.backend.sampling.test_sampling_crowds import VOCAB, Crowd
from tests.backend.sampling.test_sampling_reference import filtered
from trident_backend.engine.host_logits import VocabularyKernels
from trident_backend.engine.numpy_kernels import NumpyKernels
from trident_backend.engine.openvino.kernels import OpenVINOKernels
from trident_backend.engine.protocol import CHUNK_WIDTH, FloatArray
from trident_backend.sequences.sampling_params import SamplingParams

SIZES = (2, 50, 256, 257, 1000, 32_000, 50_257)


def _kernels(vocab_size: int) -> list[VocabularyKernels]:
    return [NumpyKernels(), OpenVINOKernels(vocab_size)]


def _logits(vocab_size: int, num_rows: int = 37) -> FloatArray:
    """Rows with equals and with banned tokens among them."""
    rng = np.random.default_rng(vocab_size)
    logits = rng.normal(0, 4, (num_rows, vocab_size)).astype(np.float32)
    logits[::3] = np.round(logits[::3])
    logits[1::3][rng.random(logits[1::3].shape) < 0.5] = -np.inf
    logits[:, 0] = 1.0
    return logits


@pytest.mark.parametrize("vocab_size", SIZES)
def test_kernels_masses_are_torchs_sums(vocab_size: int) -> None:
    logits = _logits(vocab_size)
    maxima, num_rows = logits.max(axis=1), len(logits)
    inverse = np.linspace(0.2, 3, num_rows).astype(np.float32)
    some, none = np.linspace(-3, 1, num_rows).astype(np.float32), np.full(num_rows, -np.inf, np.float32)
    distances = torch.from_numpy(logits).double() - torch.from_numpy(maxima)[:, None]
    for floors in (None, some, maxima, none):
        weights = (distances * torch.from_numpy(inverse)[:, None]).exp()
        if floors is not None:
            weights[torch.from_numpy(logits) < torch.from_numpy(floors)[:, None]] = 0
        padded = torch.nn.functional.pad(weights, (0, -vocab_size % CHUNK_WIDTH))
        expected = padded.reshape(num_rows, -1, CHUNK_WIDTH).sum(2)
        for kernels in _kernels(vocab_size):
            masses = kernels.chunk_exp_sums(logits, maxima, inverse, floors)
            assert masses.dtype == np.float32
            np.testing.assert_allclose(masses, expected.numpy(), rtol=3e-6, atol=1e-30)


@pytest.mark.parametrize("vocab_size", SIZES)
def test_kernels_the_largest_are_torchs(vocab_size: int) -> None:
    logits = _logits(vocab_size)
    for count in {1, 2, 20, 51, 257, 1025} | ({vocab_size} if vocab_size < 2000 else set()):
        if count <= vocab_size:
            expected = torch.from_numpy(logits).topk(count).values.numpy()
            for kernels in _kernels(vocab_size):
                values, ids = kernels.top_k(logits, count)
                np.testing.assert_array_equal(values, expected)
                np.testing.assert_array_equal(np.take_along_axis(logits, ids, axis=1), values)
                assert all(len(set(row)) == count for row in ids.tolist())


@pytest.mark.parametrize("vocab_size", [257, 50_257])
def test_kernels_what_they_give_for_a_row_depends_on_that_row_alone(vocab_size: int) -> None:
    kernels, logits = OpenVINOKernels(vocab_size), _logits(vocab_size)
    maxima, ones = logits.max(axis=1), np.ones(len(logits), np.float32)
    floors = np.full(len(logits), -2, np.float32)
    masses, above = kernels.chunk_exp_sums(logits, maxima, ones), kernels.chunk_exp_sums(logits, maxima, ones, floors)
    values, _ = kernels.top_k(logits, 21)
    logits[5], logits[6] = np.nan, np.inf
    for start, end in ((0, 1), (7, 37), (3, 20), (36, 37), (0, 37)):
        some = slice(start, end)
        again = (
            kernels.chunk_exp_sums(logits[some], maxima[some], ones[some]),
            kernels.chunk_exp_sums(logits[some], maxima[some], ones[some], floors[some]),
            kernels.top_k(logits[some], 21)[0],
        )
        whole = ~np.isin(np.arange(start, end), (5, 6))
        for after, before in zip(again, (masses, above, values), strict=True):
            np.testing.assert_array_equal(after[whole], before[some][whole])


@pytest.mark.parametrize("params", FILTERS)
def test_kernels_draws_follow_their_distribution(params: SamplingParams) -> None:
    logits = np.random.default_rng(4).normal(0, 2, 600).astype(np.float32)
    check_distribution(sample_one(logits, params, 6_000, OpenVINOKernels(600)), filtered(logits, params))


def test_kernels_a_large_flat_vocabulary_is_drawn_from_evenly_to_its_end() -> None:
    check_large_vocabulary(OpenVINOKernels(128_256))


_CROWD_KERNELS = OpenVINOKernels(VOCAB)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32))
def test_kernels_a_row_gets_what_it_asks_for_in_any_company(seed: int) -> None:
    Crowd(seed).check(_CROWD_KERNELS)
