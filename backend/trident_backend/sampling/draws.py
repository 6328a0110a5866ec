"""Draws a token a row from its filtered distribution, exactly.

Owns what top_k, top_p and min_p keep, in the field's order: the k likeliest tokens, of those the fewest that together
reach top_p (the one that crosses it is kept), of those the ones at least min_p times as likely as the likeliest. Of
equally likely tokens the lowest ids are kept. Nothing but top_k cuts the list of candidates.
"""

from __future__ import annotations

import numpy as np

from trident_backend.engine.protocol import StepLogits, TokenIds
from trident_backend.sampling.inversion import invert, passed
from trident_backend.sampling.sampling_rows import SamplingRows
from trident_backend.sampling.top_k import top_k
from trident_backend.sampling.top_p import keep_or_redraw


def draw(logits: StepLogits, drawing: SamplingRows) -> TokenIds:
    """One token for each of n rows, `[n]`."""
    tokens = drawing.likeliest.copy()
    # Rows of about the same k go together, as the largest sets the price for all.
    sizes = np.ceil(np.log2(np.maximum(drawing.top_ks, 1)) / _SIZE_STEP)
    for size in np.unique(sizes):
        members = np.flatnonzero(sizes == size)
        draw_some = _draw_from_largest if size else _draw_from_all
        tokens[members] = draw_some(logits, drawing.of(members))
    return tokens


def _draw_from_largest(logits: StepLogits, drawing: SamplingRows) -> TokenIds:
    """With top_k: all else is arithmetic on few tokens."""
    values, ids = top_k(logits, drawing.rows, drawing.top_ks)
    exact = values.astype(np.float64)
    weights = np.exp((exact - exact[:, :1]) / drawing.temperatures[:, None])
    weights[np.arange(weights.shape[1]) >= drawing.top_ks[:, None]] = 0.0
    sums = np.cumsum(weights, axis=1)
    beyond = sums - weights >= drawing.top_ps[:, None] * sums[:, -1:]
    weights[beyond & (drawing.top_ps[:, None] < 1)] = 0.0
    weights[weights < drawing.min_ps[:, None]] = 0.0
    places, _, _ = passed(weights, drawing.uniforms())
    tokens: TokenIds = ids[np.arange(len(ids)), places]
    return tokens


def _draw_from_all(logits: StepLogits, drawing: SamplingRows) -> TokenIds:
    """Without top_k."""
    floors = None
    if drawing.min_ps.any():
        with np.errstate(divide="ignore"):
            offsets = drawing.temperatures * np.log(drawing.min_ps)
        floors = (drawing.maxima + offsets).astype(np.float32)
    masses = logits.chunk_exp_sums(drawing.rows, drawing.maxima, drawing.temperatures, floors)
    tokens = invert(logits, drawing, masses, drawing.uniforms(), floors)
    narrow = np.flatnonzero(drawing.top_ps < 1)
    if narrow.size:
        totals = masses.sum(axis=1)
        cut = narrow[drawing.min_ps[narrow] > 0]
        if cut.size:
            # top_p's share is one of all tokens, whatever min_p takes away.
            members = drawing.of(cut)
            totals[cut] = logits.chunk_exp_sums(members.rows, members.maxima, members.temperatures).sum(axis=1)
        tokens[narrow] = keep_or_redraw(logits, drawing.of(narrow), totals[narrow], tokens[narrow])
    return tokens


#: Binary digits by which the k of rows that go together may differ.
_SIZE_STEP = 3
