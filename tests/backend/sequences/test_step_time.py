"""The learned cost of a step against plain arithmetic on made-up engines."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trident_backend.sequences.step_time import StepSize, StepTime, StepTimeModel, fit

TRUTH = StepTime(base=0.02, per_token=3e-4, per_pair=2e-8, per_row=1e-4)


def _sizes(rng: np.random.Generator, num_steps: int) -> list[StepSize]:
    """Steps as they come: streams of many lengths, with a chunk of some prompt in every third."""
    sizes = []
    for _ in range(num_steps):
        size = StepSize()
        for _ in range(rng.integers(1, 64)):
            size = size.with_chunk(1, int(rng.integers(0, 4000)), 1)
        if rng.random() < 0.33:
            size = size.with_chunk(int(rng.integers(16, 2000)), int(rng.integers(0, 8000)), 0)
        sizes.append(size)
    return sizes


def _taught(
    truth: StepTime, sizes: list[StepSize], noise: np.ndarray[tuple[int], np.dtype[np.float64]]
) -> StepTimeModel:
    model = StepTimeModel()
    for size, factor in zip(sizes, noise, strict=True):
        model.observe(size, truth.seconds(size) * factor)
    return model


def _worst_error(model: StepTimeModel, truth: StepTime, sizes: list[StepSize]) -> float:
    assert model.fitted is not None
    return max(abs(model.fitted.seconds(size) / truth.seconds(size) - 1) for size in sizes)


def test_step_time_the_size_of_a_step_counts_every_pair() -> None:
    size = StepSize().with_chunk(3, 10, 0).with_chunk(1, 6, 1)
    assert size == StepSize(num_tokens=4, num_pairs=11 + 12 + 13 + 7, num_rows=1)
    assert TRUTH.seconds(size) == pytest.approx(0.02 + 4 * 3e-4 + 43 * 2e-8 + 1e-4)


def test_step_time_nothing_is_believed_before_there_is_something_to_go_by() -> None:
    model = StepTimeModel()
    assert (model.fitted, model.slack) == (None, 1.0)
    for _ in range(7):
        model.observe(StepSize(4, 40, 4), 0.01)
    assert model.fitted is None
    model.observe(StepSize(4, 40, 4), 0.01)
    assert model.fitted is not None


def test_step_time_an_exact_law_is_found() -> None:
    rng = np.random.default_rng(0)
    sizes = _sizes(rng, 400)
    model = _taught(TRUTH, sizes, np.ones(400))
    assert model.fitted is not None
    assert model.fitted.base == pytest.approx(TRUTH.base, rel=0.02)
    assert model.fitted.per_token == pytest.approx(TRUTH.per_token, rel=0.02)
    assert model.fitted.per_pair == pytest.approx(TRUTH.per_pair, rel=0.05)
    assert _worst_error(model, TRUTH, sizes) < 0.02
    assert model.slack < 1.02


@pytest.mark.parametrize("seed", range(4))
def test_step_time_noise_and_outliers_do_not_carry_it_away(seed: int) -> None:
    """5 % of noise, and every twentieth step is interrupted for ten times as long."""
    rng = np.random.default_rng(seed)
    sizes = _sizes(rng, 400)
    noise = rng.normal(1, 0.05, 400).clip(0.8) * np.where(rng.random(400) < 0.05, 10, 1)
    model = _taught(TRUTH, sizes, noise)
    assert _worst_error(model, TRUTH, sizes) < 0.15
    assert 1.02 < model.slack < 1.35


def test_step_time_slack_is_the_ninetieth_percentile() -> None:
    rng = np.random.default_rng(1)
    noise = rng.uniform(0.8, 1.2, 2000)
    model = _taught(TRUTH, _sizes(rng, 2000), noise)
    assert model.slack == pytest.approx(1.16, abs=0.04)


@pytest.mark.slow
@settings(deadline=None)
@given(
    rows=st.lists(
        st.tuples(
            st.integers(1, 4096), st.integers(1, 10**7), st.integers(0, 256), st.floats(1e-6, 10, allow_subnormal=False)
        ),
        min_size=1,
        max_size=60,
    )
)
def test_step_time_no_observations_give_a_negative_or_infinite_cost(rows: list[tuple[int, int, int, float]]) -> None:
    sizes = np.array([(1, tokens, pairs, num_rows) for tokens, pairs, num_rows, _ in rows], np.float64)
    seconds = np.array([row[3] for row in rows])
    coefficients = fit(sizes, seconds)
    assert coefficients.shape == (4,)
    assert np.isfinite(coefficients).all()
    assert (coefficients >= 0).all()
    assert coefficients.any()


def test_step_time_a_fit_is_no_worse_than_any_of_a_grid() -> None:
    """Least relative error without negative coefficients, where the free optimum would have one: searched by hand."""
    tokens = np.array([1.0, 2, 4, 8, 16, 32])
    seconds = np.array([1.0, 1.1, 1.6, 3.1, 6.2, 13.0])
    sizes = np.stack([np.ones(6), tokens, np.zeros(6), np.zeros(6)], axis=1)
    fitted = fit(sizes, seconds)
    assert not fitted[2:].any()

    def loss(base: float, per_token: float) -> float:
        """Huber's, as far as the fit's own scale goes: a plain median is enough to compare by."""
        return float(np.median(np.abs((base + per_token * tokens) / seconds - 1)))

    grid = min(loss(base, per_token) for base in np.linspace(0, 2, 81) for per_token in np.linspace(0, 1, 81))
    assert loss(fitted[0], fitted[1]) < grid + 0.1


def test_step_time_steps_of_one_size_are_predicted_and_no_other_is_absurd() -> None:
    """One stream alone: nothing tells base from tokens, pairs and rows, and nothing may blow up."""
    model = StepTimeModel()
    for place in range(200):
        model.observe(StepSize(1, 500 + place, 1), 0.03)
    assert model.fitted is not None
    assert model.fitted.seconds(StepSize(1, 700, 1)) == pytest.approx(0.03, rel=0.02)
    assert 0 <= model.fitted.seconds(StepSize(64, 64 * 700, 64)) <= 64 * 0.03 * 1.1
    for _ in range(200):
        model.observe(StepSize(8, 800, 8), 0.05)
    assert model.fitted.seconds(StepSize(8, 800, 8)) == pytest.approx(0.05, rel=0.05)


def test_step_time_it_follows_a_machine_that_becomes_half_as_fast() -> None:
    rng = np.random.default_rng(2)
    model = _taught(TRUTH, _sizes(rng, 300), rng.normal(1, 0.03, 300))
    slow = StepTime(*(2 * value for value in (TRUTH.base, TRUTH.per_token, TRUTH.per_pair, TRUTH.per_row)))
    for num_steps, worst in ((200, 0.6), (500, 0.1)):
        later = _sizes(rng, num_steps)
        for size in later:
            model.observe(size, slow.seconds(size))
        assert model.fitted is not None
        assert _worst_error(model, slow, later) < worst
        # Until every size has been seen again, the slack makes up for what is still believed of the old machine.
        assured = [model.fitted.seconds(size) * model.slack / slow.seconds(size) for size in later]
        assert np.percentile(assured, 10) > 0.8


def test_step_time_many_small_steps_do_not_make_it_forget_a_large_one() -> None:
    model = StepTimeModel()
    large = StepSize(2048, 2048 * 1024, 1)
    for _ in range(24):
        model.observe(large, TRUTH.seconds(large))
    for place in range(5000):
        small = StepSize(4, 4 * (100 + place), 4)
        model.observe(small, TRUTH.seconds(small))
    assert model.fitted is not None
    assert model.fitted.seconds(large) == pytest.approx(TRUTH.seconds(large), rel=0.1)


@settings(deadline=None)
@given(
    step_time=st.builds(
        StepTime,
        st.floats(0, 0.1),
        st.floats(1e-6, 1e-3),
        st.one_of(st.just(0.0), st.floats(1e-10, 1e-6)),
        st.floats(0, 1e-3),
    ),
    size=st.builds(StepSize, st.integers(0, 512), st.integers(0, 10**6), st.integers(0, 256)),
    past_len=st.integers(0, 30_000),
    seconds=st.floats(0, 0.5),
)
def test_step_time_the_largest_chunk_is_what_brute_force_finds(
    step_time: StepTime, size: StepSize, past_len: int, seconds: float
) -> None:
    chunk = step_time.largest_chunk(size, past_len, seconds)
    assert chunk >= 0
    # Rounding may cost the one token that ends exactly in time.
    if chunk:
        assert step_time.seconds(size.with_chunk(chunk, past_len, 0)) <= seconds * (1 + 1e-9)
    assert step_time.seconds(size.with_chunk(chunk + 1, past_len, 0)) > seconds * (1 - 1e-9)


def test_step_time_where_tokens_cost_nothing_any_chunk_is_in_time() -> None:
    free = StepTime(0.01, 0.0, 0.0, 0.0)
    assert free.largest_chunk(StepSize(), 0, 0.02) > 10**6
    assert free.largest_chunk(StepSize(), 0, 0.01) == 0
