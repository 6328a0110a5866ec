"""Chooses each sequence's next token from its row of logits.

Owns the choice and the random numbers, which depend on a request's seed and the token's place alone, never on the
other sequences of the step. Never changes a sequence.
"""

from __future__ import annotations

from collections.abc import Sequence as Rows

import numpy as np
import numpy.typing as npt

from trident_backend.engine.protocol import FloatArray
from trident_backend.guide import RowMasks
from trident_backend.sampling.choices import Choices
from trident_backend.sequence import SamplingParams
from trident_backend.steps import Row


class Sampler:
    """Chooses and scores.

    Args:
        vocab_size: width of a row of logits.
    """

    def __init__(self, vocab_size: int) -> None:
        self._vocab_size = vocab_size

    def choose(self, logits: FloatArray, rows: Rows[Row], masks: RowMasks | None = None) -> Choices:
        """One token for each row.

        Args:
            logits: `[R, vocab_size]`; may be overwritten.
            rows: what each of the R rows is for.
            masks: of those rows whose sequence has a guide.
        """
        if not rows:
            return Choices([])
        token_ids: list[int] = logits.argmax(axis=1).tolist()
        for index, row in enumerate(rows):
            params = row.sequence.sampling
            if params.temperature > 0 and params.top_k != 1:
                token_ids[index] = _draw(logits[index], params, _uniform(params.seed, row.place))
        return Choices(token_ids)


def _uniform(seed: int, position: int) -> float:
    """The random number of one place of one request, in [0, 1): counter-based, so that nothing need be kept."""
    return float(np.random.Generator(np.random.Philox(key=seed, counter=position)).random())


def _draw(logits: FloatArray, params: SamplingParams, uniform: float) -> int:
    """Invert the cumulative distribution of softmax(logits / temperature), cut to top_k and then to top_p."""
    vocab_size = len(logits)
    candidates: npt.NDArray[np.intp] | None = None
    if 0 < params.top_k < vocab_size:
        candidates = np.argpartition(logits, vocab_size - params.top_k)[vocab_size - params.top_k :]
        logits = logits[candidates]
    probabilities = np.exp((logits.astype(np.float64) - logits.max()) / params.temperature)
    probabilities /= probabilities.sum()
    if params.top_p < 1:
        order = np.argsort(-probabilities, kind="stable")
        # The token that crosses top_p is kept, as everywhere in the field.
        num_kept = int(np.searchsorted(np.cumsum(probabilities[order]), params.top_p)) + 1
        order = order[:num_kept]
        probabilities = probabilities[order]
        candidates = order if candidates is None else candidates[order]
    cumulative = np.cumsum(probabilities)
    index = min(int(np.searchsorted(cumulative, uniform * cumulative[-1], side="right")), len(cumulative) - 1)
    return int(index if candidates is None else candidates[index])
