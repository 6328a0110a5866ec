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

from trident_backend.engine.protocol import FloatArray, Indices, StepLogits, TokenIds
from trident_backend.guide import RowMasks
from trident_backend.sampling.fixed_edits import FixedEdits
from trident_backend.sampling.token_counts import TokenCounts
from trident_backend.sequence import SamplingParams, Sequence
from trident_backend.steps import Row


class Moved(NamedTuple):
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


class Edits:
    """Of all sequences.

    Args:
        vocab_size: width of a row of logits; tokens beyond it are left alone.
    """

    def __init__(self, vocab_size: int) -> None:
        self._vocab_size = vocab_size
        self._fixed: WeakKeyDictionary[Sequence, FixedEdits] = WeakKeyDictionary()

    def apply(self, logits: StepLogits, rows: Rows[Row], masks: RowMasks | None) -> list[Moved]:
        """Change the logits in place.

        Args:
            logits: `[R, vocab_size]`.
            rows: what each is for; those that score are left as they are.
            masks: of those rows whose sequence has a guide.

        Returns:
            what penalties and biases have moved, the earliest edit first.
        """
        moved = []
        penalised: list[int] = []
        counted: list[tuple[TokenIds, TokenIds]] = []
        fixed: list[tuple[int, FixedEdits]] = []
        for number, row in enumerate(rows):
            params = row.sequence.sampling
            if row.is_scored:
                continue
            if penalises(params):
                penalised.append(number)
                counted.append(_counts(row))
            if params.logit_bias or params.bad_words or params.min_tokens:
                fixed.append((number, self._fixed_edits(row.sequence)))
        if penalised:
            params_of = [rows[number].sequence.sampling for number in penalised]
            moved.append(_penalise(logits, penalised, counted, params_of))
        biased = [(number, edits) for number, edits in fixed if edits.bias_ids.size]
        if biased:
            at, ids = _pairs((number, edits.bias_ids) for number, edits in biased)
            moved.append(Moved(at, ids, logits.read(at, ids)))
            logits.write(at, ids, moved[-1].values + np.concatenate([edits.biases for _, edits in biased]))
        banned = [(number, edits.banned_ids(rows[number])) for number, edits in fixed]
        if banned:
            logits.write(*_pairs(banned), np.array(-np.inf, np.float32))
        if masks is not None and len(masks.rows):
            logits.allow(masks.rows, masks.words)
        return moved

    def _fixed_edits(self, sequence: Sequence) -> FixedEdits:
        """One for all sequences of a request."""
        first = sequence.parent or sequence
        edits = self._fixed.get(first)
        if edits is None:
            edits = self._fixed[first] = FixedEdits(first, self._vocab_size)
        return edits


def penalises(params: SamplingParams) -> bool:
    """Whether tokens that have come before become less likely, or more."""
    return params.repetition_penalty != 1 or params.presence_penalty != 0 or params.frequency_penalty != 0


def _counts(row: Row) -> tuple[TokenIds, TokenIds]:
    sequence = row.sequence
    if sequence.token_counts is None:
        sequence.token_counts = TokenCounts(sequence.num_prompt_tokens)
    sequence.token_counts.see(sequence.token_ids)
    return sequence.token_counts.after(row.draft_ids)


def _pairs(parts: Iterable[tuple[int, TokenIds]]) -> tuple[Indices, TokenIds]:
    """Rows and token ids, pair by pair."""
    numbers, ids = zip(*parts, strict=True)
    return np.repeat(np.array(numbers, np.intp), [len(part) for part in ids]), np.concatenate(ids)


def _penalise(
    logits: StepLogits,
    numbers: list[int],
    counted: list[tuple[TokenIds, TokenIds]],
    params: list[SamplingParams],
) -> Moved:
    at, ids = _pairs(zip(numbers, (ids for ids, _ in counted), strict=True))
    counts = np.concatenate([part for _, part in counted]).astype(np.float32)
    lengths = [len(ids) for ids, _ in counted]
    repetition, presence, frequency = (
        np.repeat(np.array(column, np.float32), lengths)
        for column in zip(
            *((p.repetition_penalty, p.presence_penalty, p.frequency_penalty) for p in params), strict=True
        )
    )
    before = logits.read(at, ids)
    values = np.where(before < 0, before * repetition, before / repetition)
    values -= np.where(counts > 0, presence + frequency * counts, 0)
    logits.write(at, ids, values)
    return Moved(at, ids, before)
