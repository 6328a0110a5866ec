"""A step's logits that lie in this process.

Owns the choice between computing rows that nobody asked for and copying those that somebody did. Never samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from trident_backend.engine.protocol import Doubles, FloatArray, Indices, Int32Array, RowPenalties, TokenIds


class VocabularyKernels(Protocol):
    """Operations on whole rows of logits. What they give for a row depends on that row alone. Logits are C-contiguous
    `[R, V]`, read and never changed; of a row with NaN or +inf anything may come."""

    def chunk_exp_sums(
        self, logits: FloatArray, maxima: FloatArray, inverse_temperatures: FloatArray, floors: FloatArray | None = None
    ) -> FloatArray:
        """Sum the weights `exp((logit - maximum) * inverse_temperature)` over each chunk of the vocabulary.

        Args:
            logits: `[R, V]`.
            maxima: `[R]`, the rows' largest, so that the largest weight is 1.
            inverse_temperatures: `[R]`, finite.
            floors: `[R]`, logits below which a token weighs nothing; None where all weigh.

        Returns:
            float32 `[R, ceil(V / CHUNK_WIDTH)]`.
        """
        ...

    def top_k(self, logits: FloatArray, count: int) -> tuple[FloatArray, Int32Array]:
        """Find each row's largest logits and their token ids.

        Args:
            logits: `[R, V]`.
            count: how many, up to V.

        Returns:
            values and ids `[R, count]`, the largest first. Among equals any come first, and any come at all.
        """
        ...


class HostLogits:
    """See `StepLogits`.

    Args:
        array: `[R, V]`, C-contiguous; written to.
        kernels: the engine's.
    """

    def __init__(self, array: FloatArray, kernels: VocabularyKernels) -> None:
        self.array = array
        self._kernels = kernels

    @property
    def shape(self) -> tuple[int, int]:
        """See `StepLogits.shape`."""
        num_rows, vocab_size = self.array.shape
        return num_rows, vocab_size

    def argmax(self, rows: Indices) -> tuple[TokenIds, FloatArray]:
        """See `StepLogits.argmax`."""
        logits, places = self._block(rows)
        ids = logits.argmax(axis=1)
        return ids[places].astype(np.int64), logits[np.arange(len(ids)), ids][places]

    def chunk_exp_sums(
        self, rows: Indices, maxima: FloatArray, temperatures: Doubles, floors: FloatArray | None = None
    ) -> Doubles:
        """See `StepLogits.chunk_exp_sums`."""
        logits, places = self._block(rows)
        columns = [maxima, (1 / temperatures).astype(np.float32), *([] if floors is None else [floors])]
        if len(logits) > len(rows):
            columns = [_spread(column, places, len(logits)) for column in columns]
        return self._kernels.chunk_exp_sums(logits, *columns)[places].astype(np.float64)

    def top_k(self, rows: Indices, count: int) -> tuple[FloatArray, TokenIds]:
        """See `StepLogits.top_k`."""
        logits, places = self._block(rows)
        values, ids = self._kernels.top_k(logits, count)
        return values[places], ids[places].astype(np.int64)

    def find_ties(self, rows: Indices, values: FloatArray, counts: TokenIds) -> list[TokenIds]:
        """See `StepLogits.find_ties`."""
        return [
            np.flatnonzero(self.array[row] == value)[:count]
            for row, value, count in zip(rows.tolist(), values, counts.tolist(), strict=True)
        ]

    def read(self, rows: Indices, ids: TokenIds) -> FloatArray:
        """See `StepLogits.read`."""
        values: FloatArray = self.array[rows, ids]
        return values

    def write(self, rows: Indices, ids: TokenIds, values: FloatArray) -> None:
        """See `StepLogits.write`."""
        self.array[rows, ids] = values

    def penalise(self, rows: Indices, penalties: Sequence[RowPenalties]) -> None:
        """See `StepLogits.penalise`; of many tokens row by row, so that those read are in the caches when written."""
        for row, (repetition, seen_ids, *_) in zip(rows.tolist(), penalties, strict=True):
            if len(seen_ids):
                logits = self.array[row]
                values = logits.take(seen_ids, mode="wrap")
                products = values * repetition
                values /= repetition
                # Whatever its sign, a logit's product and quotient lie on either side of it.
                (np.minimum if repetition >= 1 else np.maximum)(values, products, values)
                logits[seen_ids] = values
        lengths = [len(each.counted_ids) for each in penalties]
        if any(lengths):
            pairs = np.repeat(rows, lengths), np.concatenate([each.counted_ids for each in penalties])
            self.array[pairs] -= np.concatenate([each.offsets for each in penalties])

    def apply_token_bitmask(self, rows: Indices, words: npt.NDArray[np.uint32]) -> None:
        """See `StepLogits.apply_token_bitmask`; run by run of adjacent rows."""
        # Bit t % 32 of word t // 32 is bit t % 8 of byte t // 8, the words being little-endian.
        forbidden = np.ascontiguousarray(~words).astype("<u4", copy=False).view(np.uint8)
        banned = np.unpackbits(forbidden, axis=1, count=self.array.shape[1], bitorder="little").view(np.bool_)
        begins = np.flatnonzero(np.diff(rows, prepend=-2) != 1).tolist()
        for begin, end in zip(begins, [*begins[1:], len(banned)], strict=True):
            first = rows[begin]
            np.putmask(self.array[first : first + end - begin], banned[begin:end], np.float32(-np.inf))

    def _block(self, rows: Indices) -> tuple[FloatArray, Indices | slice]:
        """Rows in one piece of memory that hold those named, and where they stand among them."""
        first, span = rows[0], rows[-1] - rows[0] + 1
        if span == len(rows):
            return self.array[first : first + span], slice(None)
        if span <= _MAX_WASTE * len(rows):
            return self.array[first : first + span], rows - first
        return self.array[rows], slice(None)


def _spread(column: FloatArray, places: Indices | slice, num_rows: int) -> FloatArray:
    spread = np.zeros(num_rows, np.float32)
    spread[places] = column
    return spread


#: Copying a row costs about as much as the kernels on it.
_MAX_WASTE = 2
