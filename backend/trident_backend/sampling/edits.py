"""Changes a step's logits as its requests ask for: penalties, biases and bans, in this order.

Owns what must be known of a sequence for it, beside the sequence. Never chooses. All changes are to pairs of a row and
a token, made for all rows at once; but a guide's, which is to whole rows.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as Rows
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt

from trident_backend.engine.protocol import FloatArray
from trident_backend.guide import RowMasks
from trident_backend.sampling.fixed_edits import FixedEdits
from trident_backend.sampling.token_counts import TokenCounts
from trident_backend.sequence import SamplingParams, Sequence
from trident_backend.steps import Row


class Edits:
    """Of all sequences.

    Args:
        vocab_size: width of a row of logits; tokens beyond it are left alone.
    """

    def __init__(self, vocab_size: int) -> None:
        self._vocab_size = vocab_size
        self._fixed: WeakKeyDictionary[Sequence, FixedEdits] = WeakKeyDictionary()

    def apply(self, logits: FloatArray, rows: Rows[Row], masks: RowMasks | None) -> None:
        """Change the logits in place.

        Args:
            logits: `[R, vocab_size]`.
            rows: what each is for; those that score are left as they are.
            masks: of those rows whose sequence has a guide.
        """
        penalised: list[int] = []
        counted: list[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]] = []
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
            _penalise(logits, penalised, counted, [rows[number].sequence.sampling for number in penalised])
        biased = [(number, edits) for number, edits in fixed if edits.bias_ids.size]
        if biased:
            at = _pairs((number, edits.bias_ids) for number, edits in biased)
            logits[at] += np.concatenate([edits.biases for _, edits in biased])
        banned = [(number, edits.banned_ids(rows[number])) for number, edits in fixed]
        if banned:
            logits[_pairs(banned)] = -np.inf
        if masks is not None and len(masks.rows):
            _mask(logits, masks)

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


def moves(params: SamplingParams) -> bool:
    """Whether logits change of tokens that may be chosen."""
    return penalises(params) or bool(params.logit_bias)


def _counts(row: Row) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    sequence = row.sequence
    if sequence.token_counts is None:
        sequence.token_counts = TokenCounts(sequence.num_prompt_tokens)
    sequence.token_counts.see(sequence.token_ids)
    return sequence.token_counts.after(row.draft_ids)


def _pairs(parts: Iterable[tuple[int, npt.NDArray[np.int64]]]) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.int64]]:
    """Rows and token ids as one index."""
    numbers, ids = zip(*parts, strict=True)
    return np.repeat(np.array(numbers, np.intp), [len(part) for part in ids]), np.concatenate(ids)


def _penalise(
    logits: FloatArray,
    numbers: list[int],
    counted: list[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]],
    params: list[SamplingParams],
) -> None:
    at = _pairs(zip(numbers, (ids for ids, _ in counted), strict=True))
    counts = np.concatenate([part for _, part in counted]).astype(np.float32)
    lengths = [len(ids) for ids, _ in counted]
    repetition, presence, frequency = (
        np.repeat(np.array(column, np.float32), lengths)
        for column in zip(
            *((p.repetition_penalty, p.presence_penalty, p.frequency_penalty) for p in params), strict=True
        )
    )
    values = logits[at]
    values = np.where(values < 0, values * repetition, values / repetition)
    values -= np.where(counts > 0, presence + frequency * counts, 0)
    logits[at] = values


def _mask(logits: FloatArray, masks: RowMasks) -> None:
    """Ban what the guides do not allow, run by run of adjacent rows."""
    # Bit t % 32 of word t // 32 is bit t % 8 of byte t // 8, the words being little-endian.
    forbidden = np.ascontiguousarray(~masks.words).astype("<u4", copy=False).view(np.uint8)
    banned = np.unpackbits(forbidden, axis=1, count=logits.shape[1], bitorder="little").view(np.bool_)
    begins = np.flatnonzero(np.diff(masks.rows, prepend=-2) != 1).tolist()
    for begin, end in zip(begins, [*begins[1:], len(banned)], strict=True):
        first = masks.rows[begin]
        np.putmask(logits[first : first + end - begin], banned[begin:end], np.float32(-np.inf))
