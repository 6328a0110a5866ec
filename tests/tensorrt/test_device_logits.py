"""Logits on a device against the same logits on the host: each operation, and all of sampling."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.backend.sampling.test_sampling_crowds import VOCAB, Crowd
from tests.backend.sampling.test_sampling_reference import next_row, sequence_of
from tests.fakes.sampling_plans import SamplingDevice, on_host, trt
from trident_backend.engine.numpy_kernels import NumpyKernels
from trident_backend.engine.protocol import CHUNK_WIDTH, FloatArray
from trident_backend.sampling.sampler import Sampler
from trident_backend.sequences.choices import NOT_FINITE
from trident_backend.sequences.sampling_params import SamplingParams
from trident_compiler.tensorrt.sampling_networks import sampling_networks

MAX_ROWS = 300
#: Below, at and above a chunk; of whole chunks and not; fewer than there are plans for the largest; more than all find.
SIZES = (70, 256, 600, 4096)
_DEVICES: dict[int, SamplingDevice] = {}


def device_of(vocab_size: int) -> SamplingDevice:
    if vocab_size not in _DEVICES:
        _DEVICES[vocab_size] = SamplingDevice(vocab_size, MAX_ROWS)
    return _DEVICES[vocab_size]


def _logits(vocab_size: int, num_rows: int = 150) -> FloatArray:
    """More rows than one run takes, with equals and with banned tokens among them."""
    rng = np.random.default_rng(vocab_size)
    logits = rng.normal(0, 4, (num_rows, vocab_size)).astype(np.float32)
    logits[::3] = np.round(logits[::3])
    logits[1::3][rng.random(logits[1::3].shape) < 0.5] = -np.inf
    logits[:, 1] = 1.0
    return logits


@pytest.mark.parametrize("vocab_size", SIZES)
def test_device_logits_argmax_is_the_lowest_of_equals_and_what_is_no_number_shows(vocab_size: int) -> None:
    logits = _logits(vocab_size)
    logits[2] = -np.inf
    logits[3] = 1.0
    logits[4, [3, 9]], logits[5, 7], logits[6] = np.nan, np.inf, np.nan
    for rows in (np.arange(150), np.array([149]), np.array([2, 3, 4, 5, 6, 140])):
        ids, values = device_of(vocab_size).logits(logits).argmax(rows)
        broken = np.isin(rows, (4, 5, 6))
        np.testing.assert_array_equal(ids[~broken], logits[rows].argmax(axis=1)[~broken])
        np.testing.assert_array_equal(values[~broken], logits[rows].max(axis=1)[~broken])
        assert np.isposinf(values[broken]).all()
        assert ids.dtype == np.int64


@pytest.mark.parametrize("vocab_size", SIZES)
def test_device_logits_exp_sums_are_sums_by_chunk(vocab_size: int) -> None:
    logits, rows = _logits(vocab_size), np.arange(3, 140, 2)
    maxima, temperatures = logits[rows].max(axis=1), np.linspace(0.3, 5, len(rows))
    for floors in (None, np.linspace(-3, 1, len(rows)).astype(np.float32), maxima):
        exponents = (logits[rows].astype(np.float64) - maxima[:, None]) / temperatures[:, None]
        weights = np.where(logits[rows] < (-np.inf if floors is None else floors[:, None]), 0, np.exp(exponents))
        expected = np.add.reduceat(weights, np.arange(0, vocab_size, CHUNK_WIDTH), axis=1)
        sums = device_of(vocab_size).logits(logits).chunk_exp_sums(rows, maxima, temperatures, floors)
        np.testing.assert_allclose(sums, expected, rtol=1e-5, atol=1e-30)


@pytest.mark.parametrize("vocab_size", SIZES)
def test_device_logits_the_largest_are_found_in_any_number(vocab_size: int) -> None:
    logits, rows = _logits(vocab_size), np.array([0, 1, 2, 5, 100])
    for count in {1, 64, 65, 1025, 3841, vocab_size}:
        if count <= vocab_size:
            values, ids = device_of(vocab_size).logits(logits).top_k(rows, count)
            np.testing.assert_array_equal(values, -np.sort(-logits[rows], axis=1)[:, :count])
            np.testing.assert_array_equal(np.take_along_axis(logits[rows], ids, axis=1), values)
            assert all(len(set(row)) == count for row in ids.tolist())


@pytest.mark.parametrize("vocab_size", SIZES)
def test_device_logits_equals_are_the_lowest_ids(vocab_size: int) -> None:
    logits = np.round(_logits(vocab_size) / 8)
    rows, counts = np.arange(0, 150, 3), np.arange(50) * 3 + 1
    values = logits[rows, rows % vocab_size]
    values[0] = 0.123
    found = device_of(vocab_size).logits(logits).find_ties(rows, values, counts)
    for row, value, count, ids in zip(rows, values, counts, found, strict=True):
        np.testing.assert_array_equal(ids, np.flatnonzero(logits[row] == value)[:count])


@pytest.mark.parametrize("vocab_size", SIZES)
def test_device_logits_what_is_written_is_read_and_nothing_else_has_changed(vocab_size: int) -> None:
    rng, expected = np.random.default_rng(0), _logits(vocab_size)
    logits = device_of(vocab_size).logits(expected)
    every_row, every_id = np.arange(len(expected))[:, None], np.arange(vocab_size)
    for num_pairs in (1, 40, 3000, 0):
        pairs = rng.choice(expected.size, min(num_pairs, expected.size), replace=False)
        rows, ids = np.divmod(np.sort(pairs), vocab_size)
        values = rng.normal(size=len(rows)).astype(np.float32)
        logits.write(rows, ids, values)
        expected[rows, ids] = values
        np.testing.assert_array_equal(logits.read(rows, ids), values)
        np.testing.assert_array_equal(logits.read(every_row, every_id), expected)
    twice = np.array([4, 4, 9]), np.array([7, 7, 0])
    logits.write(*twice, np.array(-np.inf, np.float32))
    expected[twice] = -np.inf
    np.testing.assert_array_equal(logits.read(every_row, every_id), expected)


def test_device_logits_more_pairs_than_one_run_takes() -> None:
    expected = _logits(4096, 40)
    logits = device_of(4096).logits(expected)
    rows, ids = (part.reshape(-1) for part in np.indices((40, 4096)))
    values = np.arange(len(rows), dtype=np.float32)
    logits.write(rows, ids, values)
    np.testing.assert_array_equal(logits.read(rows, ids), values)


@pytest.mark.parametrize("vocab_size", SIZES)
def test_device_logits_masks_ban_what_their_bits_do_not_allow(vocab_size: int) -> None:
    rng, expected = np.random.default_rng(1), _logits(vocab_size)
    logits = device_of(vocab_size).logits(expected)
    for rows in (np.arange(150), np.array([3, 4, 8])):
        words = rng.integers(0, 2**32, (len(rows), -(-vocab_size // 32)), dtype=np.uint32)
        logits.apply_token_bitmask(rows, words)
        ids = np.arange(vocab_size)
        allowed = words[:, ids // 32] >> (ids % 32).astype(np.uint32) & np.uint32(1)
        expected[rows] = np.where(allowed, expected[rows], -np.inf)
        np.testing.assert_array_equal(logits.read(np.arange(150)[:, None], ids), expected)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32))
def test_device_logits_the_sampler_chooses_on_the_device_what_it_chooses_on_the_host(seed: int) -> None:
    crowd = Crowd(seed)
    if len(crowd.rows) > MAX_ROWS:
        return
    array, masks = crowd.logits.copy(), crowd.row_masks(list(range(len(crowd.rows))))
    if seed % 3 == 0:
        array[seed % len(array), seed % VOCAB] = (np.nan, np.inf)[seed % 2]
    expected = Sampler(VOCAB).choose(on_host(array, NumpyKernels()), crowd.rows, masks)
    found = Sampler(VOCAB).choose(device_of(VOCAB).logits(array, seed), crowd.rows, masks)
    assert found.token_ids == expected.token_ids
    assert found.log_probs.keys() == expected.log_probs.keys()
    for number, (log_prob, top_ids, top_log_probs) in expected.log_probs.items():
        if (
            np.isfinite(array[number]).any()
            and not np.isposinf(array[number]).any()
            and not np.isnan(array[number]).any()
        ):
            assert found.log_probs[number].log_prob == pytest.approx(log_prob, abs=1e-5)
            assert found.log_probs[number].top_ids == top_ids
            assert found.log_probs[number].top_log_probs == pytest.approx(top_log_probs, abs=1e-5)


def test_device_logits_top_p_among_equals_is_the_hosts() -> None:
    """More equals than a plan finds, so that the host looks at some rows itself."""
    array = np.zeros((60, VOCAB), np.float32)
    array[::2] = np.round(np.random.default_rng(0).normal(0, 1, (30, VOCAB)))
    rows = [next_row(sequence_of(SamplingParams(1.0, top_p=0.6, seed=seed), [1])) for seed in range(60)]
    expected = Sampler(VOCAB).choose(on_host(array, NumpyKernels()), rows)
    assert Sampler(VOCAB).choose(device_of(VOCAB).logits(array), rows).token_ids == expected.token_ids


def test_device_logits_a_greedy_step_is_one_run_and_a_row_of_nan_has_no_token() -> None:
    device = SamplingDevice(VOCAB, 100)
    array = np.random.default_rng(0).normal(size=(90, VOCAB)).astype(np.float32)
    array[50] = np.nan
    rows = [next_row(sequence_of(replace(SamplingParams(), seed=seed), [1])) for seed in range(90)]
    tokens = Sampler(VOCAB).choose(device.logits(array), rows).token_ids
    assert {name: plan.num_runs for name, plan in device.interpreted.items() if plan.num_runs} == {"argmax": 1}
    assert tokens == [NOT_FINITE if number == 50 else token for number, token in enumerate(array.argmax(1).tolist())]


@pytest.mark.parametrize("capability", ["SM80", "SM89"])
def test_device_logits_every_network_builds(capability: str) -> None:
    builder = trt.Builder(trt.Logger(trt.Logger.ERROR))
    for network in sampling_networks(151_936, 512):
        definition = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        layers = network.write(trt, definition)
        config, profile = builder.create_builder_config(), builder.create_optimization_profile()
        for name, shapes in network.profile.items():
            profile.set_shape(name, *shapes)
        config.add_optimization_profile(profile)
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(trt.ComputeCapability, capability), 0)
        assert builder.build_serialized_network(definition, config) is not None, network.name
        del layers


def test_device_logits_closing_frees_everything() -> None:
    device = SamplingDevice(70, 4)
    device.plans.close()
    assert device.device.num_allocations == 1, "the logits' own memory is the engine's"
