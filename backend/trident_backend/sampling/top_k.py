"""Finds the largest logits of rows and their tokens, of equals those of the lowest ids.

Owns which of equals are among the largest. Never samples.
"""

from __future__ import annotations

import numpy as np

from trident_backend.engine.protocol import FloatArray, Indices, StepLogits, TokenIds


def top_k(logits: StepLogits, rows: Indices, counts: TokenIds) -> tuple[FloatArray, TokenIds]:
    """Return the rows' largest logits and their tokens, the largest first; of equals the lowest ids, in order.

    Args:
        logits: of the step.
        rows: `[n]`, which rows, ascending.
        counts: `[n]`, how many of each row, from 1 to V.

    Returns:
        values and ids `[n, max(counts)]`; only the first `counts` of a row mean anything.
    """
    vocab_size = logits.shape[1]
    width = int(counts.max())
    # One more than asked for tells whether equals of the last were left out.
    values, ids = logits.top_k(rows, min(width + 1, vocab_size))
    numbers = np.arange(len(rows))
    lasts = values[numbers, counts - 1]
    is_cut = (counts < vocab_size) & (values[numbers, np.minimum(counts, vocab_size - 1)] == lasts)
    cut = np.flatnonzero(is_cut & np.isfinite(lasts))
    if cut.size:
        is_tied = values[cut] == lasts[cut, None]
        ties = logits.find_ties(rows[cut], lasts[cut], is_tied.sum(axis=1))
        for number, columns, lowest in zip(cut.tolist(), is_tied, ties, strict=True):
            ids[number, columns] = lowest
    order = np.lexsort((ids, -values), axis=1)[:, :width]
    return np.take_along_axis(values, order, axis=1), np.take_along_axis(ids, order, axis=1)
