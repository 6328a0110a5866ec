"""Changes a step's logits as its requests ask for: penalties, biases and bans, in this order.

Owns what must be known of a request for it, beside its sequences. Never chooses. All changes are to pairs of a row and
a token and are made for all rows at once, but for those of a guide, which are to whole rows.
"""

from __future__ import annotations

import collections.abc as cabc
from typing import NamedTuple
from weakref import WeakKeyDictionary

import numpy as np

from trident_backend.engine.protocol import FloatArray, Indices, RowPenalties, StepLogits, TokenIds
from trident_backend.sampling.sampling_rows import RowTraits
from trident_backend.sequences.guide import RowMasks
from trident_backend.sequences.sampling_params import BANNING_BIAS, Traits
from trident_backend.sequences.sequence import Sequence
from trident_backend.sequences.steps import Row
from trident_backend.sequences.token_counts import TokenCounts


class ModifiedLogits(NamedTuple):
    """The logits that one logits processor has changed, as they were before.

    Args:
        rows: `[n]`, ascending.
        ids: `[n]`, different ones for each row.
        values: `[n]`.
    """

    rows: Indices
    ids: TokenIds
    values: FloatArray

    def before(self, row: int, token_id: int, after: float) -> float:
        """Return a logit as it was before the change.

        Args:
            row: of the step.
            token_id: of the row.
            after: the logit after the change.
        """
        begin, end = np.searchsorted(self.rows, [row, row + 1])
        found = np.flatnonzero(self.ids[begin:end] == token_id)
        return float(self.values[begin + found[0]]) if found.size else after


class RequestLogitBias:
    """The biases and bans of one request, in arrays that are made once.

    Args:
        sequence: one of the request's, whose parameters and ends count.
        vocab_size: tokens beyond it cannot be chosen, so that they are left out.
    """

    def __init__(self, sequence: Sequence, vocab_size: int) -> None:
        params = sequence.sampling
        biases: dict[int, float] = {}
        for token_id, bias in params.logit_bias:
            biases[token_id] = biases.get(token_id, 0.0) + bias
        self.bias_ids = _ids(biases, vocab_size)
        self.biases = np.array([biases[token_id] for token_id in self.bias_ids.tolist()], np.float32)
        banned = {token_id for token_id, bias in biases.items() if bias <= BANNING_BIAS}
        self._bad_ids = _ids(banned | {word[0] for word in params.bad_words if len(word) == 1}, vocab_size)
        self._end_ids = _ids(sequence.end_ids | sequence.stop_ids, vocab_size)
        #: The last tokens of longer words, by the tokens before.
        self._words: dict[tuple[int, ...], list[int]] = {}
        for word in params.bad_words:
            if len(word) > 1 and 0 <= word[-1] < vocab_size:
                self._words.setdefault(word[:-1], []).append(word[-1])
        self._lengths = sorted({len(beginning) for beginning in self._words})

    def banned_ids(self, row: Row) -> TokenIds:
        """Return the tokens that must not come at the row's position; some may be named twice."""
        sequence, parts = row.sequence, [self._bad_ids]
        if row.position - sequence.num_prompt_tokens < sequence.sampling.min_tokens:
            parts.append(self._end_ids)
        if self._words:
            parts.append(np.array(self._last_tokens(row), np.int64))
        return np.concatenate(parts)

    def _last_tokens(self, row: Row) -> list[int]:
        """Return the last tokens of the words that are complete but for these."""
        before = [*row.sequence.token_ids[-self._lengths[-1] :], *row.draft_ids]
        return [
            token_id
            for length in self._lengths
            if length <= len(before)
            for token_id in self._words.get(tuple(before[-length:]), ())
        ]


class LogitsProcessors:
    """The logits processors of all requests.

    Args:
        vocab_size: width of a row of logits; tokens beyond it are left alone.
    """

    def __init__(self, vocab_size: int) -> None:
        self._vocab_size = vocab_size
        self._biases: WeakKeyDictionary[Sequence, RequestLogitBias] = WeakKeyDictionary()

    def apply(
        self, logits: StepLogits, rows: cabc.Sequence[Row], traits: RowTraits, masks: RowMasks | None
    ) -> list[ModifiedLogits]:
        """Change the logits in place; rows that are scored are left as they are.

        Args:
            logits: `[R, vocab_size]`.
            rows: what each of the R rows is for.
            traits: `[R]`, what each asks for.
            masks: of those rows whose sequence has a guide.

        Returns:
            what was changed, the earliest first: by penalties where log probabilities are wanted, and by biases.
        """
        moved: list[ModifiedLogits] = []
        self._penalise(logits, rows, traits, moved)
        edited = [(number, self._bias(rows[number].sequence)) for number in _numbers(traits, Traits.EDITED)]
        biased = [(number, edits) for number, edits in edited if edits.bias_ids.size]
        if biased:
            at, ids = _pairs((number, edits.bias_ids) for number, edits in biased)
            moved.append(ModifiedLogits(at, ids, logits.read(at, ids)))
            logits.write(at, ids, moved[-1].values + np.concatenate([edits.biases for _, edits in biased]))
        if edited:
            banned = _pairs((number, edits.banned_ids(rows[number])) for number, edits in edited)
            logits.write(*banned, np.array(-np.inf, np.float32))
        if masks is not None and len(masks.rows):
            logits.apply_token_bitmask(masks.rows, masks.words)
        return moved

    def _penalise(
        self, logits: StepLogits, rows: cabc.Sequence[Row], traits: RowTraits, moved: list[ModifiedLogits]
    ) -> None:
        numbers = _numbers(traits, Traits.PENALISED)
        if not numbers:
            return
        penalties = [_penalties(rows[number]) for number in numbers]
        with_log_probs = set(_numbers(traits, Traits.LOG_PROBS))
        moving = [
            (number, each.ids) for number, each in zip(numbers, penalties, strict=True) if number in with_log_probs
        ]
        if moving:
            at, ids = _pairs(moving)
            moved.append(ModifiedLogits(at, ids, logits.read(at, ids)))
        logits.penalise(np.array(numbers, np.intp), penalties)

    def _bias(self, sequence: Sequence) -> RequestLogitBias:
        """Return what is the same for all sequences of a request."""
        first = sequence.parent or sequence
        edits = self._biases.get(first)
        if edits is None:
            edits = self._biases[first] = RequestLogitBias(first, self._vocab_size)
        return edits


def _penalties(row: Row) -> RowPenalties:
    """Return a row's penalties; tokens that were counted before are not counted again."""
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


def _numbers(traits: RowTraits, trait: Traits) -> list[int]:
    """Return the numbers of the rows that have a trait, ascending."""
    numbers: list[int] = np.flatnonzero(traits & trait).tolist()
    return numbers


def _pairs(parts: cabc.Iterable[tuple[int, TokenIds]]) -> tuple[Indices, TokenIds]:
    """Return rows and token ids, pair by pair."""
    numbers, ids = zip(*parts, strict=True)
    return np.repeat(np.array(numbers, np.intp), [len(part) for part in ids]), np.concatenate(ids)


def _ids(token_ids: cabc.Iterable[int], vocab_size: int) -> TokenIds:
    return np.array([token_id for token_id in token_ids if 0 <= token_id < vocab_size], np.int64)
