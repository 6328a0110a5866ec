"""Learns how long the engine takes for a step of a given size.

Owns the observations and the fitted coefficients: seconds = base + per_token * tokens + per_pair * pairs + per_row *
rows, for the network's weights, its products, its attention, and the logits with what is chosen from them. Never reads
a clock, never decides.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import combinations
from typing import NamedTuple

import numpy as np
import numpy.typing as npt


class StepSize(NamedTuple):
    """The amount of work in a step.

    Args:
        num_tokens: tokens on the packed axis.
        num_pairs: pairs of a query token and a key token that attention visits.
        num_rows: rows of logits.
    """

    num_tokens: int = 0
    num_pairs: int = 0
    num_rows: int = 0

    def with_chunk(self, num_new_tokens: int, past_len: int, num_rows: int) -> StepSize:
        """Return the size with a further chunk.

        Args:
            num_new_tokens: tokens of the chunk.
            past_len: tokens of its sequence before it.
            num_rows: rows of logits that it brings.
        """
        return StepSize(
            self.num_tokens + num_new_tokens,
            self.num_pairs + num_new_tokens * past_len + num_new_tokens * (num_new_tokens + 1) // 2,
            self.num_rows + num_rows,
        )


@dataclass(frozen=True)
class StepTime:
    """The seconds that a step takes, as a linear function of its size.

    Args:
        base: seconds of any step.
        per_token: seconds of each token.
        per_pair: seconds of each pair of a query and a key.
        per_row: seconds of each row of logits.
    """

    base: float
    per_token: float
    per_pair: float
    per_row: float

    def seconds(self, size: StepSize) -> float:
        """Return how many seconds a step of this size takes."""
        per_size = self.per_token * size.num_tokens + self.per_pair * size.num_pairs + self.per_row * size.num_rows
        return self.base + per_size

    def largest_chunk(self, size: StepSize, past_len: int, seconds: float, rows_per_token: int = 0) -> int:
        """Return the most tokens of one sequence that can be added to a step that is to end in time.

        Args:
            size: of the step without them.
            past_len: tokens of the sequence before them.
            seconds: what the step may take.
            rows_per_token: rows of logits that each of them brings.
        """
        room = seconds - self.seconds(size)
        if room <= 0:
            return 0
        # room = linear * n + quadratic * n * n
        quadratic = self.per_pair / 2
        linear = self.per_token + self.per_pair * (past_len + 0.5) + self.per_row * rows_per_token
        if linear <= 0:
            return _UNBOUNDED
        return min(_UNBOUNDED, int(2 * room / (linear + math.sqrt(linear * linear + 4 * quadratic * room))))


class StepTimeModel:
    """Fits `StepTime` to the last steps of each size.

    The last few steps of every order of magnitude are kept, so that a long time of small steps does not forget what a
    large one costs, and an old state of the machine does not count for long. Errors are relative, and steps that took
    surprisingly long count less (Huber 1964).

    A fit takes milliseconds, so there is none until one is asked for.
    """

    def __init__(self) -> None:
        self._fitted: StepTime | None = None
        self._slack = 1.0
        self._rows = np.zeros((_NUM_MAGNITUDES * _NUM_KEPT, 5))
        self._num_seen = [0] * _NUM_MAGNITUDES
        self._num_new = 0
        self._num_fits = 0

    def observe(self, size: StepSize, seconds: float) -> None:
        """Learn that a step of this size took so many seconds."""
        magnitude = min(_NUM_MAGNITUDES - 1, size.num_tokens.bit_length())
        index = magnitude * _NUM_KEPT + self._num_seen[magnitude] % _NUM_KEPT
        self._rows[index] = 1, size.num_tokens, size.num_pairs, size.num_rows, max(seconds, 1e-9)
        self._num_seen[magnitude] += 1
        self._num_new += 1

    @property
    def fitted(self) -> StepTime | None:
        """The cost of a step as observed; None until enough steps have been. May be some steps old."""
        self.refit_if_due()
        return self._fitted

    @property
    def slack(self) -> float:
        """What a step takes at its 90th percentile, as a multiple of what `fitted` says; at least 1."""
        self.refit_if_due()
        return self._slack

    def refit_if_due(self) -> None:
        """Fit the coefficients again if enough steps have been observed since the last fit."""
        # Often at first, when every step is news.
        if self._num_new >= min(_FIRST_FIT << self._num_fits, _REFIT_EVERY):
            self._num_new = 0
            self._num_fits += 1
            self._refit()

    def _refit(self) -> None:
        rows = self._rows[self._rows[:, 4] > 0]
        sizes, seconds = rows[:, :4], rows[:, 4]
        fitted = fit(sizes, seconds)
        self._fitted = StepTime(*fitted.tolist())
        ratios = seconds / np.maximum(sizes @ fitted, 1e-12)
        self._slack = float(np.clip(np.percentile(ratios, 90), 1.0, _MAX_SLACK))


def fit(sizes: npt.NDArray[np.float64], seconds: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the non-negative coefficients of least relative error.

    Args:
        sizes: `[n, 4]`: 1, tokens, pairs, rows.
        seconds: `[n]`, above 0.

    Returns:
        base, per_token, per_pair, per_row: `[4]`.
    """
    weights = 1 / seconds
    coefficients = np.zeros(4)
    for _ in range(_NUM_PASSES):
        coefficients = _non_negative(sizes * weights[:, None], seconds * weights)
        errors = np.abs(sizes @ coefficients / seconds - 1)
        scale = max(float(np.median(errors)) * 2, 1e-6)
        weights = np.sqrt(np.minimum(1, scale / np.maximum(errors, 1e-12))) / seconds
    return coefficients


def _non_negative(left: npt.NDArray[np.float64], right: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Solve least squares without negative coefficients: the best of all subsets of columns, the whole first."""
    gram, moment = left.T @ left, left.T @ right
    best, least = np.zeros(4), math.inf
    for subset in _SUBSETS:
        block = gram[np.ix_(subset, subset)]
        scale = np.sqrt(np.diag(block))
        if not scale.all():
            continue
        # A trace of ridge, relative to each column's size, decides between columns that have not differed yet.
        normal = block / np.outer(scale, scale) + np.diag(_RIDGE[subset])
        solution = np.linalg.solve(normal, moment[subset] / scale) / scale
        if (solution < 0).any():
            continue
        full = np.zeros(4)
        full[subset] = solution
        if len(subset) == len(full):
            return full
        loss = float(full @ gram @ full - 2 * full @ moment)
        if loss < least:
            best, least = full, loss
    return best


_UNBOUNDED = 1 << 30
_NUM_MAGNITUDES = 20
_NUM_KEPT = 24
_FIRST_FIT = 8
_REFIT_EVERY = 32
_NUM_PASSES = 3
_MAX_SLACK = 2.0
#: Most for rows: one stream alone has one row in every step, and only draft tokens show what a row costs.
_RIDGE = np.array([1e-6, 1e-6, 1e-6, 1e-3])
_SUBSETS = [list(subset) for size in (4, 3, 2, 1) for subset in combinations(range(4), size)]
