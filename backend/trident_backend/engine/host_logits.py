"""A step's logits in this process's memory.

Owns the choice between computing more rows than asked for and copying the rows asked for. Never samples.
"""

from __future__ import annotations

import collections.abc as cabc
from typing import Protocol

import numpy as np
import numpy.typing as npt

from trident_backend.engine.protocol import Doubles, FloatArray, Indices, Int32Array, RowPenalties, TokenIds


class VocabularyKernels(Protocol):
    """Operations on whole rows of logits.

    Logits are C-contiguous `[R, V]` and never written to. The result for a row depends on that row alone, and is
    undefined for a row with NaN or +inf.
    """

    def chunk_exp_sums(
        self, logits: FloatArray, maxima: FloatArray, inverse_temperatures: FloatArray, floors: FloatArray | None = None
    ) -> FloatArray:
        """Sum the weights `exp((logit - maximum) * inverse_temperature)` over each chunk of the vocabulary.

        Args:
            logits: `[R, V]`.
            maxima: `[R]`, the largest logit of each row, so that the largest weight is 1.
            inverse_temperatures: `[R]`, finite.
            floors: `[R]`, logits below which a token's weight is 0; None for no floor.

        Returns:
            float32 `[R, ceil(V / CHUNK_WIDTH)]`.
        """
        ...

    def top_k(self, logits: FloatArray, count: int) -> tuple[FloatArray, Int32Array]:
        """Find each row's largest logits and their token ids.

        Args:
            logits: `[R, V]`.
            count: how many, from 1 to V.

        Returns:
            logits and token ids `[R, count]`, the largest first. Which of several equal logits are returned, and in
            which order, is undefined.
        """
        ...


class HostLogits:
    """Logits in a numpy array; the methods do what `StepLogits` says.

    Args:
        array: `[R, V]`, C-contiguous and writable.
        kernels: compute on whole rows of it.
    """

    def __init__(self, array: FloatArray, kernels: VocabularyKernels) -> None:
        self.array = array
        self._kernels = kernels

    @property
    def shape(self) -> tuple[int, int]:
        """R, the rows, and V, the size of the vocabulary."""
        num_rows, vocab_size = self.array.shape
        return num_rows, vocab_size

    def argmax(self, rows: Indices) -> tuple[TokenIds, FloatArray]:
        """Find the token with the largest logit in each row."""
        logits, indices = self._block(rows)
        ids = logits.argmax(axis=1)
        return ids[indices].astype(np.int64), logits[np.arange(len(ids)), ids][indices]

    def chunk_exp_sums(
        self, rows: Indices, maxima: FloatArray, temperatures: Doubles, floors: FloatArray | None = None
    ) -> Doubles:
        """Sum the weights over each chunk of the vocabulary."""
        logits, indices = self._block(rows)
        columns = [maxima, (1 / temperatures).astype(np.float32), *([] if floors is None else [floors])]
        if len(logits) > len(rows):
            columns = [_spread(column, indices, len(logits)) for column in columns]
        return self._kernels.chunk_exp_sums(logits, *columns)[indices].astype(np.float64)

    def top_k(self, rows: Indices, count: int) -> tuple[FloatArray, TokenIds]:
        """Find the largest logits of each row and their token ids."""
        logits, indices = self._block(rows)
        values, ids = self._kernels.top_k(logits, count)
        return values[indices], ids[indices].astype(np.int64)

    def find_ties(self, rows: Indices, values: FloatArray, counts: TokenIds) -> list[TokenIds]:
        """Find the tokens of each row whose logit equals a value exactly."""
        return [
            np.flatnonzero(self.array[row] == value)[:count]
            for row, value, count in zip(rows.tolist(), values, counts.tolist(), strict=True)
        ]

    def read(self, rows: Indices, ids: TokenIds) -> FloatArray:
        """Return the logits of pairs of a row and a token."""
        values: FloatArray = self.array[rows, ids]
        return values

    def write(self, rows: Indices, ids: TokenIds, values: FloatArray) -> None:
        """Overwrite the logits of pairs of a row and a token."""
        self.array[rows, ids] = values

    def penalise(self, rows: Indices, penalties: cabc.Sequence[RowPenalties]) -> None:
        """Apply penalties row by row, so that the logits read are still in the caches when they are written."""
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
        """Set the logits of the tokens that are not allowed to -inf, one run of adjacent rows after another."""
        # Bit t % 32 of word t // 32 is bit t % 8 of byte t // 8, the words being little-endian.
        forbidden = np.ascontiguousarray(~words).astype("<u4", copy=False).view(np.uint8)
        banned = np.unpackbits(forbidden, axis=1, count=self.array.shape[1], bitorder="little").view(np.bool_)
        begins = np.flatnonzero(np.diff(rows, prepend=-2) != 1).tolist()
        for begin, end in zip(begins, [*begins[1:], len(banned)], strict=True):
            first = rows[begin]
            np.putmask(self.array[first : first + end - begin], banned[begin:end], np.float32(-np.inf))

    def _block(self, rows: Indices) -> tuple[FloatArray, Indices | slice]:
        """Return contiguous rows `[n, V]` that contain those asked for, and the indices of these among them."""
        first, span = rows[0], rows[-1] - rows[0] + 1
        if span == len(rows):
            return self.array[first : first + span], slice(None)
        if span <= _MAX_WASTE * len(rows):
            return self.array[first : first + span], rows - first
        return self.array[rows], slice(None)


def _spread(column: FloatArray, indices: Indices | slice, num_rows: int) -> FloatArray:
    spread = np.zeros(num_rows, np.float32)
    spread[indices] = column
    return spread


#: Copying a row costs about as much as the kernels on it.
_MAX_WASTE = 2
