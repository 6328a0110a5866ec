"""The vocabulary's kernels on some of a step's rows.

Owns the choice between computing rows that nobody asked for and copying those that somebody did, and which of equals
are among the largest. Never samples.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from trident_backend.engine.protocol import FloatArray, VocabularyKernels
from trident_backend.sampling.drawing_rows import Doubles, Indices, TokenIds


class RowKernels:
    """The kernels on one step's logits.

    Args:
        kernels: the engine's.
        logits: `[R, V]`, C-contiguous, read at each call.
    """

    def __init__(self, kernels: VocabularyKernels, logits: FloatArray) -> None:
        self.logits = logits
        self._kernels = kernels

    def likeliest(self, rows: Indices) -> tuple[TokenIds, FloatArray]:
        """The rows' likeliest tokens, of equals those of the lowest ids, and their logits, `[n]`; NaN where one is."""
        logits, places = self._block(rows)
        ids = logits.argmax(axis=1)
        return ids[places].astype(np.int64), logits[np.arange(len(ids)), ids][places]

    def masses(
        self, rows: Indices, maxima: FloatArray, temperatures: Doubles, floors: FloatArray | None = None
    ) -> Doubles:
        """See `VocabularyKernels.masses`.

        Args:
            rows: `[n]`, which rows, ascending.
            maxima: `[n]`.
            temperatures: `[n]`, from 1e-30 to 1e30.
            floors: `[n]`, or None.

        Returns:
            `[n, C]`.
        """
        logits, places = self._block(rows)
        columns = [maxima, (1 / temperatures).astype(np.float32), *([] if floors is None else [floors])]
        if len(logits) > len(rows):
            columns = [_spread(column, places, len(logits)) for column in columns]
        return self._kernels.masses(logits, *columns)[places].astype(np.float64)

    def largest(self, rows: Indices, counts: TokenIds) -> tuple[FloatArray, TokenIds]:
        """The rows' largest logits and their tokens, the largest first; of equals the lowest ids, in order.

        Args:
            rows: `[n]`, which rows, ascending.
            counts: `[n]`, how many of each, from 1 to V.

        Returns:
            values and ids `[n, max(counts)]`; of a row only the first `counts` hold.
        """
        vocab_size = self.logits.shape[1]
        width = int(counts.max())
        logits, places = self._block(rows)
        # One more than asked for tells whether equals of the last were left out.
        found, found_ids = self._kernels.largest(logits, min(width + 1, vocab_size))
        values, ids = found[places], found_ids[places].astype(np.int64)
        numbers = np.arange(len(rows))
        lasts = values[numbers, counts - 1]
        cut = (counts < vocab_size) & (values[numbers, np.minimum(counts, vocab_size - 1)] == lasts)
        for number in np.flatnonzero(cut & np.isfinite(lasts)).tolist():
            places = np.flatnonzero(values[number] == lasts[number])
            ids[number, places] = np.flatnonzero(self.logits[rows[number]] == lasts[number])[: len(places)]
        order = np.lexsort((ids, -values), axis=1)[:, :width]
        return np.take_along_axis(values, order, axis=1), np.take_along_axis(ids, order, axis=1)

    def _block(self, rows: Indices) -> tuple[FloatArray, npt.NDArray[np.intp] | slice]:
        """Rows in one piece of memory that hold those named, and where they stand among them."""
        first, span = rows[0], rows[-1] - rows[0] + 1
        if span == len(rows):
            return self.logits[first : first + span], slice(None)
        if span <= _MAX_WASTE * len(rows):
            return self.logits[first : first + span], rows - first
        return self.logits[rows], slice(None)


def _spread(column: FloatArray, places: npt.NDArray[np.intp] | slice, num_rows: int) -> FloatArray:
    spread = np.zeros(num_rows, np.float32)
    spread[places] = column
    return spread


#: Copying a row costs about as much as the kernels on it.
_MAX_WASTE = 2
