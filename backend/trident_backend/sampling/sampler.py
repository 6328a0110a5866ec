"""Chooses and scores the tokens of a step, all of its rows at once.

Owns the order of the operations. What it chooses for a row depends on that row, its request and its position alone,
never on the other sequences of the step. Never changes a sequence, but for the token counts that it keeps there.
"""

from __future__ import annotations

import collections.abc as cabc

import numpy as np

from trident_backend.engine.protocol import Indices, StepLogits, TokenIds
from trident_backend.sampling.draws import draw
from trident_backend.sampling.log_probs import LogProbs
from trident_backend.sampling.logits_processors import LogitsProcessors
from trident_backend.sampling.sampling_rows import RowTraits, pack, row_traits
from trident_backend.sequences.choices import NO_TOKEN, NOT_FINITE, Choices
from trident_backend.sequences.guide import RowMasks
from trident_backend.sequences.sampling_params import Traits
from trident_backend.sequences.steps import Row


class Sampler:
    """Chooses and scores.

    Args:
        vocab_size: width of a row of logits.
    """

    def __init__(self, vocab_size: int) -> None:
        self._processors = LogitsProcessors(vocab_size)

    def choose(self, logits: StepLogits, rows: cabc.Sequence[Row], masks: RowMasks | None = None) -> Choices:
        """Return one token for each row, and the log probabilities that are wanted.

        Args:
            logits: `[R, vocab_size]`; written to.
            rows: what each of the R rows is for.
            masks: of those rows whose sequence has a guide.
        """
        if not rows:
            return Choices([])
        traits = row_traits(rows)
        log_probs = LogProbs(logits, rows, np.flatnonzero(traits & Traits.LOG_PROBS))
        moved = self._processors.apply(logits, rows, traits, masks)
        token_ids = np.empty(len(rows), np.int64)
        for number in np.flatnonzero(traits & Traits.SCORED).tolist():
            token_ids[number] = rows[number].sequence.token_ids[rows[number].position]
        choosing = np.flatnonzero(~traits & Traits.SCORED)
        if choosing.size:
            token_ids[choosing] = _choose(logits, rows, traits, choosing)
        chosen: list[int] = token_ids.tolist()
        return Choices(chosen, log_probs.of(chosen, moved))


def _choose(logits: StepLogits, rows: cabc.Sequence[Row], traits: RowTraits, choosing: Indices) -> TokenIds:
    tokens, maxima = logits.argmax(choosing)
    is_finite = np.isfinite(maxima)
    tokens[~is_finite] = NOT_FINITE
    # -inf is the largest only where every token is banned.
    tokens[np.isneginf(maxima)] = NO_TOKEN
    sampled = np.flatnonzero((traits[choosing] & Traits.SAMPLED).astype(np.bool_) & is_finite)
    if sampled.size:
        numbers = choosing[sampled]
        tokens[sampled] = draw(logits, pack(rows, numbers, tokens[sampled], maxima[sampled], logits.shape[1]))
    return tokens
