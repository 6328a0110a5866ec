"""Penalties that stay on the device: the same as on the host, whoever comes and goes, for few bytes a step."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.backend.sampling.test_sampling_reference import sequence_of
from tests.fakes.sampling_plans import SamplingDevice, on_host
from trident_backend.engine.gpu.device_logits import DeviceLogits
from trident_backend.engine.numpy_kernels import NumpyKernels
from trident_backend.engine.protocol import FloatArray
from trident_backend.sampling.logits_processors import LogitsProcessors
from trident_backend.sampling.sampling_rows import row_traits
from trident_backend.sequences.sampling_params import SamplingParams
from trident_backend.sequences.sequence import Sequence
from trident_backend.sequences.steps import Row
from trident_ensemble.contract.errors import EngineError

VOCAB = 300
#: Rows of a step, and of the table.
NUM_ROWS = 6


@pytest.fixture(scope="module")
def device() -> SamplingDevice:
    return SamplingDevice(VOCAB, NUM_ROWS)


def _all(logits: DeviceLogits) -> FloatArray:
    num_rows, vocab_size = logits.shape
    return logits.read(np.arange(num_rows)[:, None], np.arange(vocab_size))


def _logits(num_rows: int, seed: int) -> FloatArray:
    logits = np.random.default_rng(seed).normal(0, 3, (num_rows, VOCAB)).astype(np.float32)
    logits[:, ::7] = np.round(logits[:, ::7])
    return logits


def _check_step(device: SamplingDevice, edits: LogitsProcessors, rows: list[Row], seed: int) -> None:
    given = _logits(len(rows), seed)
    expected, found = on_host(given, NumpyKernels()), device.logits(given, seed)
    LogitsProcessors(VOCAB).apply(expected, rows, row_traits(rows), None)
    edits.apply(found, rows, row_traits(rows), None)
    np.testing.assert_array_equal(_all(found), expected.array)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32))
def test_penalty_rows_any_history_gives_the_hosts_logits(seed: int) -> None:
    """More sequences than the table has rows, some with draft tokens; some end and make way for others."""
    rng, edits, device = random.Random(seed), LogitsProcessors(VOCAB), SamplingDevice(VOCAB, NUM_ROWS)  # noqa: S311 (a test's)
    sequences = [_sequence(rng) for _ in range(NUM_ROWS + 3)]
    for step in range(12):
        rows = []
        for sequence in rng.sample(sequences, rng.randint(1, NUM_ROWS // 2)):
            drafts = tuple(rng.choices(range(40), k=rng.choice([0, 0, 1])))
            rows += [Row(sequence, sequence.num_tokens + n, drafts[:n]) for n in range(len(drafts) + 1)]
        _check_step(device, edits, rows, seed + step)
        for row in rows:
            row.sequence.token_ids += rng.choices(range(40), k=rng.choice([0, 1, 1, 3]))
        sequences[rng.randrange(len(sequences))] = _sequence(rng)


def _sequence(rng: random.Random) -> Sequence:
    params = SamplingParams(
        repetition_penalty=rng.choice([1.0, 1.3, 0.7]),
        presence_penalty=rng.choice([0.0, 0.5]),
        frequency_penalty=rng.choice([0.0, -0.25]),
    )
    return sequence_of(params, rng.choices(range(VOCAB), k=rng.randint(1, 30)))


def test_penalty_rows_a_step_sends_what_is_new_however_long_the_prompts_are(
    device: SamplingDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[int] = []
    upload = device.device.upload

    def counting(target_address: int, source_array: np.ndarray[tuple[int], np.dtype[np.uint8]]) -> None:
        sent.append(source_array.nbytes)
        upload(target_address, source_array)

    monkeypatch.setattr(device.device, "upload", counting)
    params = SamplingParams(repetition_penalty=1.2, presence_penalty=0.1, frequency_penalty=0.1)
    costs = []
    for num_tokens in (20, 280):
        edits = LogitsProcessors(VOCAB)
        sequences = [sequence_of(params, list(range(num_tokens)), [1]) for _ in range(NUM_ROWS)]
        per_step = []
        for step in range(4):
            sent.clear()
            before = {name: plan.num_runs for name, plan in device.interpreted.items()}
            rows = [Row(s, s.num_tokens) for s in sequences]
            edits.apply(device.logits(_logits(NUM_ROWS, step)), rows, row_traits(rows), None)
            device.device.synchronize()
            runs = {name: plan.num_runs - before[name] for name, plan in device.interpreted.items()}
            assert {name: count for name, count in runs.items() if count} == {"write": 1, "penalise": 1}
            per_step.append(sum(sent))
            for sequence in sequences:
                sequence.token_ids.append(290 + step)
        assert per_step[1] == per_step[2] == per_step[3]
        costs.append(per_step)
    (small, *_, few), (large, *_, still_few) = costs
    assert few == still_few <= small < large


def test_penalty_rows_after_a_failure_nothing_is_taken_for_granted(
    device: SamplingDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = SamplingParams(repetition_penalty=1.2, frequency_penalty=0.1)
    sequences, edits = [sequence_of(params, [1, 2, 3], [4]) for _ in range(3)], LogitsProcessors(VOCAB)
    rows = [Row(sequence, sequence.num_tokens) for sequence in sequences]
    _check_step(device, edits, rows, 0)
    for sequence in sequences:
        sequence.token_ids.append(5)
    rows = [Row(sequence, sequence.num_tokens) for sequence in sequences]

    def failing(*_: object) -> None:
        raise EngineError("lost")

    with monkeypatch.context() as patch:
        patch.setattr(device.interpreted["write"], "run", failing)
        with pytest.raises(EngineError):
            edits.apply(device.logits(_logits(3, 1)), rows, row_traits(rows), None)
    device.device.synchronize()
    _check_step(device, edits, rows, 2)


def test_penalty_rows_rows_of_sequences_that_are_gone_are_used_again(device: SamplingDevice) -> None:
    edits, params = LogitsProcessors(VOCAB), SamplingParams(repetition_penalty=1.2)
    for step in range(2 * NUM_ROWS):
        sequences = [sequence_of(params, [step, number]) for number in range(3)]
        _check_step(device, edits, [Row(sequence, 2) for sequence in sequences], step)
        del sequences
    assert len(device.plans.penalty_rows._held) == 0
