"""Changes a step's logits as its requests ask for: penalties, biases and bans, in this order.

Owns what must be known of a sequence for it, beside the sequence. Never chooses. All changes are to pairs of a row and
a token, made for all rows at once; but a guide's, which is to whole rows.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as Rows
from typing import NamedTuple
from weakref import WeakKeyDictionary

import numpy as np

from trident_backend.engine.protocol import FloatArray, Indices, RowPenalties, StepLogits, TokenIds
from trident_backend.sampling.logit_edits import RequestLogitBias
from trident_backend.sequences.guide import RowMasks
from trident_backend.sequences.sampling_params import SamplingParams
from trident_backend.sequences.sequence import Sequence
from trident_backend.sequences.steps import Row
from trident_backend.sequences.token_counts import TokenCounts


class ModifiedLogits(NamedTuple):
    """Logits that one edit has moved, as they were before it.

    Args:
        rows: `[n]`, ascending.
        ids: `[n]`, each row's different.
        values: `[n]`.
    """

    rows: Indices
    ids: TokenIds
    values: FloatArray

    def before(self, row: int, token_id: int, after: float) -> float:
        """A pair's logit before the edit.

        Args:
            row: of the step.
            token_id: of the row.
            after: its logit after the edit.
        """
        begin, end = np.searchsorted(self.rows, [row, row + 1])
        places = np.flatnonzero(self.ids[begin:end] == token_id)
        return float(self.values[begin + places[0]]) if places.size else after


class LogitsProcessors:
    """Of all sequences.

    Args:
        vocab_size: width of a row of logits; tokens beyond it are left alone.
    """

    def __init__(self, vocab_size: int) -> None:
        self._vocab_size = vocab_size
        self._fixed: WeakKeyDictionary[Sequence, RequestLogitBias] = WeakKeyDictionary()

    def apply(self, logits: StepLogits, rows: Rows[Row], masks: RowMasks | None) -> list[ModifiedLogits]:
        """Change the logits in place.

        Args:
            logits: `[R, vocab_size]`.
            rows: what each is for; those that score are left as they are.
            masks: of those rows whose sequence has a guide.

        Returns:
            what was moved, the earliest edit first: by penalties where log probabilities are wanted, and by biases.
        """
        moved = []
        penalised: list[int] = []
        penalties: list[RowPenalties] = []
        fixed: list[tuple[int, RequestLogitBias]] = []
        for number, row in enumerate(rows):
            params = row.sequence.sampling
            if row.is_scored:
                continue
            if penalises(params):
                penalised.append(number)
                penalties.append(_penalties(row))
            if params.logit_bias or params.bad_words or params.min_tokens:
                fixed.append((number, self._fixed_edits(row.sequence)))
        if penalised:
            moving = [
                (number, row_penalties.ids)
                for number, row_penalties in zip(penalised, penalties, strict=True)
                if rows[number].sequence.sampling.log_probs
            ]
            if moving:
                at, ids = _pairs(moving)
                moved.append(ModifiedLogits(at, ids, logits.read(at, ids)))
            logits.penalise(np.array(penalised, np.intp), penalties)
        biased = [(number, edits) for number, edits in fixed if edits.bias_ids.size]
        if biased:
            at, ids = _pairs((number, edits.bias_ids) for number, edits in biased)
            moved.append(ModifiedLogits(at, ids, logits.read(at, ids)))
            logits.write(at, ids, moved[-1].values + np.concatenate([edits.biases for _, edits in biased]))
        banned = [(number, edits.banned_ids(rows[number])) for number, edits in fixed]
        if banned:
            logits.write(*_pairs(banned), np.array(-np.inf, np.float32))
        if masks is not None and len(masks.rows):
            logits.apply_token_bitmask(masks.rows, masks.words)
        return moved

    def _fixed_edits(self, sequence: Sequence) -> RequestLogitBias:
        """One for all sequences of a request."""
        first = sequence.parent or sequence
        edits = self._fixed.get(first)
        if edits is None:
            edits = self._fixed[first] = RequestLogitBias(first, self._vocab_size)
        return edits


def penalises(params: SamplingParams) -> bool:
    """Whether tokens that have come before become less likely, or more."""
    return params.repetition_penalty != 1 or params.presence_penalty != 0 or params.frequency_penalty != 0


def _penalties(row: Row) -> RowPenalties:
    """A row's penalties; what has been counted before is not counted again."""
    sequence = row.sequence
    counts = sequence.token_counts
    if counts is None:
        params = sequence.sampling
        counts = sequence.token_counts = TokenCounts(
            sequence.token_ids[: sequence.num_prompt_tokens],
            params.repetition_penalty,
            params.presence_penalty,
            params.frequency_penalty,
        )
    counts.follow(sequence.token_ids)
    return counts.penalties(row.draft_ids)


def _pairs(parts: Iterable[tuple[int, TokenIds]]) -> tuple[Indices, TokenIds]:
    """Rows and token ids, pair by pair."""
    numbers, ids = zip(*parts, strict=True)
    return np.repeat(np.array(numbers, np.intp), [len(part) for part in ids]), np.concatenate(ids)
