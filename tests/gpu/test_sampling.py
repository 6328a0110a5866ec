"""The operations on logits that lie on a GPU, against plain numpy."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from tests.backend.engine.driver import DrivenSequence, Driver, Floats, whole
from tests.gpu.conftest import MAX_NUM_SEQS, Build, loaded
from tests.gpu.steps import prompt
from trident_backend.engine.protocol import CHUNK_WIDTH, Doubles, StepLogits, execute
from trident_backend.sequences.token_counts import TokenCounts

pytestmark = pytest.mark.gpu
NUM_ROWS = 12
ROWS = np.array([0, 2, 3, 7, 11])


@pytest.fixture
def logits(repository_of: Build) -> Iterator[StepLogits]:
    """Of a step with chunks and single tokens, so that rows lie scattered in the device's buffer."""
    with loaded(repository_of("llama")) as engine:
        driver = Driver(engine)
        single = [DrivenSequence(prompt(2, seed)) for seed in range(4)]
        driver.step([(sequence, 1) for sequence in single])
        chunk = DrivenSequence(prompt(8, 9))
        assert len(single) <= MAX_NUM_SEQS
        batch = driver.batch([(single[0], 1), (chunk, 8), *((sequence, 1) for sequence in single[1:])])
        step = execute(engine, batch)
        assert step.shape[0] == NUM_ROWS
        yield step


def _floats(*values: float) -> Floats:
    return np.array(values, np.float32)


def test_sampling_the_likeliest_token_is_the_lowest_of_equals(logits: StepLogits) -> None:
    logits.write(ROWS, np.full(len(ROWS), 77), _floats(50.0).repeat(len(ROWS)))
    logits.write(ROWS, np.full(len(ROWS), 300), _floats(50.0).repeat(len(ROWS)))
    ids, values = logits.argmax(ROWS)
    assert ids.tolist() == [77] * len(ROWS)
    assert values.tolist() == [50.0] * len(ROWS)
    others = np.setdiff1d(np.arange(NUM_ROWS), ROWS)
    np.testing.assert_array_equal(logits.argmax(others)[0], whole(logits)[others].argmax(1))


def test_sampling_a_row_that_is_no_number_shows_as_such(logits: StepLogits) -> None:
    logits.write(np.array([3]), np.array([17]), _floats(np.nan))
    _, values = logits.argmax(ROWS)
    shows = np.isnan(values) | (values == np.inf)
    assert shows.tolist() == [row == 3 for row in ROWS]


def test_sampling_masses_are_sums_of_exponentials(logits: StepLogits) -> None:
    values = whole(logits)[ROWS]
    maxima, temperatures = values.max(1), np.linspace(0.5, 2.0, len(ROWS))
    floors = np.sort(values, axis=1)[:, -40]
    for floor in (None, floors):
        found = logits.chunk_exp_sums(ROWS, maxima, temperatures, floor)
        np.testing.assert_allclose(found, _masses(values, maxima, temperatures, floor), rtol=1e-4, atol=1e-6)


def _masses(values: Floats, maxima: Floats, temperatures: Doubles, floors: Floats | None) -> Doubles:
    exact = np.exp((values.astype(np.float64) - maxima[:, None]) / temperatures[:, None])
    if floors is not None:
        exact[values < floors[:, None]] = 0
    width = -(-values.shape[1] // CHUNK_WIDTH) * CHUNK_WIDTH
    padded = np.pad(exact, ((0, 0), (0, width - values.shape[1])))
    sums: Doubles = padded.reshape(len(values), -1, CHUNK_WIDTH).sum(2)
    return sums


@pytest.mark.parametrize("count", [1, 20, 100, 399])
def test_sampling_the_largest_are_those_of_a_sort(logits: StepLogits, count: int) -> None:
    values, ids = logits.top_k(ROWS, count)
    expected = whole(logits)[ROWS]
    np.testing.assert_array_equal(values, -np.sort(-expected, axis=1)[:, :count])
    np.testing.assert_array_equal(np.take_along_axis(expected, ids, axis=1), values)


def test_sampling_what_is_written_is_read_and_nothing_else_changes(logits: StepLogits) -> None:
    before = whole(logits)
    ids = np.arange(len(ROWS)) * 31 + 5
    logits.write(ROWS, ids, np.arange(len(ROWS), dtype=np.float32))
    expected = before.copy()
    expected[ROWS, ids] = np.arange(len(ROWS))
    np.testing.assert_array_equal(whole(logits), expected)
    np.testing.assert_array_equal(logits.read(ROWS, ids), np.arange(len(ROWS)))


def test_sampling_tokens_that_a_mask_does_not_allow_are_banned(logits: StepLogits) -> None:
    before = whole(logits)
    vocab_size = before.shape[1]
    allowed = np.random.default_rng(1).random((len(ROWS), vocab_size)) < 0.3
    bits = np.zeros((len(ROWS), -(-vocab_size // 32) * 32), np.uint8)
    bits[:, :vocab_size] = allowed
    words = np.packbits(bits, axis=1, bitorder="little").view("<u4")
    logits.apply_token_bitmask(ROWS, words.astype(np.uint32))
    expected = before.copy()
    expected[ROWS] = np.where(allowed, before[ROWS], -np.inf)
    np.testing.assert_array_equal(whole(logits), expected)


def test_sampling_tokens_that_came_before_are_penalised(logits: StepLogits) -> None:
    """In a first step, of which the table knows nothing, and when a token has come since."""
    prompts = [list(range(row, 300, 3)) for row in range(len(ROWS))]
    counts = [TokenCounts(token_ids, 1.5, 0.25, 0.5) for token_ids in prompts]
    for output in ([7], [7, 7, 301]):
        before = whole(logits)
        for row, token_ids, each in zip(ROWS, prompts, counts, strict=True):
            each.follow([*token_ids, *output])
            seen = sorted({*token_ids, *output})
            before[row, seen] = np.where(before[row, seen] < 0, before[row, seen] * 1.5, before[row, seen] / 1.5)
            for token_id in set(output):
                before[row, token_id] -= 0.25 + 0.5 * output.count(token_id)
        logits.penalise(ROWS, [each.penalties() for each in counts])
        np.testing.assert_allclose(whole(logits), before, rtol=1e-6, atol=1e-6)


def test_sampling_equals_are_found_lowest_first(logits: StepLogits) -> None:
    logits.write(np.array([2]), np.array([9]), _floats(3.5))
    logits.write(np.array([2]), np.array([200]), _floats(3.5))
    (one,), (both,) = (logits.find_ties(np.array([2]), _floats(3.5), np.array([count])) for count in (1, 5))
    assert one.tolist() == [9]
    assert both.tolist() == [9, 200]
