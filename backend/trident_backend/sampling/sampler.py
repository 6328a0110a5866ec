"""Chooses and scores the tokens of a step, all of its rows at once.

Owns the order of the operations. What it chooses for a row depends on that row, its request and its place alone, never
on the other sequences of the step. Never changes a sequence, but for the counts that it keeps there.
"""

from __future__ import annotations

from collections.abc import Sequence as Rows

import numpy as np

from trident_backend.engine.protocol import Indices, StepLogits
from trident_backend.sampling.draws import draw
from trident_backend.sampling.log_probs import LogProbs
from trident_backend.sampling.logits_processors import LogitsProcessors
from trident_backend.sampling.sampling_rows import draws, pack
from trident_backend.sequences.choices import NO_TOKEN, NOT_FINITE, Choices
from trident_backend.sequences.guide import RowMasks
from trident_backend.sequences.steps import Row


class Sampler:
    """Chooses and scores.

    Args:
        vocab_size: width of a row of logits.
    """

    def __init__(self, vocab_size: int) -> None:
        self._edits = LogitsProcessors(vocab_size)

    def choose(self, logits: StepLogits, rows: Rows[Row], masks: RowMasks | None = None) -> Choices:
        """One token for each row.

        Args:
            logits: `[R, vocab_size]`; written to.
            rows: what each of the R rows is for.
            masks: of those rows whose sequence has a guide.
        """
        if not rows:
            return Choices([])
        log_probs = LogProbs(logits, rows)
        moved = self._edits.apply(logits, rows, masks)
        token_ids = [row.sequence.token_ids[row.position] if row.is_scored else NO_TOKEN for row in rows]
        choosing = np.array([number for number, row in enumerate(rows) if not row.is_scored], np.intp)
        if choosing.size:
            tokens = _choose(logits, rows, choosing)
            for number, token_id in zip(choosing.tolist(), tokens, strict=True):
                token_ids[number] = token_id
        return Choices(token_ids, log_probs.of(token_ids, moved))


def _choose(logits: StepLogits, rows: Rows[Row], choosing: Indices) -> list[int]:
    tokens, maxima = logits.argmax(choosing)
    tokens[~np.isfinite(maxima)] = NOT_FINITE
    # -inf is the largest only where every token is banned.
    tokens[np.isneginf(maxima)] = NO_TOKEN
    drawing = np.array([draws(rows[number]) for number in choosing.tolist()]) & np.isfinite(maxima)
    drawn = np.flatnonzero(drawing)
    if drawn.size:
        tokens[drawn] = draw(logits, pack(rows, choosing[drawn], tokens[drawn], maxima[drawn], logits.shape[1]))
    result: list[int] = tokens.tolist()
    return result
