"""Samples one token a row from its filtered distribution, exactly.

Owns what top_k, top_p and min_p keep, in the field's order: the k most likely tokens, of those the fewest that together
reach top_p (the one that crosses it is kept), of those the ones at least min_p times as likely as the most likely. Of
equally likely tokens the lowest ids are kept. Never shortens the list of candidates for speed: without a top_k, all of
the vocabulary counts.
"""

from __future__ import annotations

import numpy as np

from trident_backend.engine.protocol import StepLogits, TokenIds
from trident_backend.sampling.inversion import find_crossing, invert
from trident_backend.sampling.sampling_rows import SamplingRows
from trident_backend.sampling.top_k import top_k
from trident_backend.sampling.top_p import keep_or_redraw


def draw(logits: StepLogits, sampled: SamplingRows) -> TokenIds:
    """Return one token for each of n rows, `[n]`.

    Args:
        logits: of the step.
        sampled: the n rows.
    """
    tokens = sampled.argmax.copy()
    # Rows of about the same k go together, as the largest sets the price for all.
    sizes = np.ceil(np.log2(np.maximum(sampled.top_ks, 1)) / _SIZE_STEP)
    for size in np.unique(sizes):
        members = np.flatnonzero(sizes == size)
        draw_some = _draw_from_largest if size else _draw_from_all
        tokens[members] = draw_some(logits, sampled.of(members))
    return tokens


def _draw_from_largest(logits: StepLogits, sampled: SamplingRows) -> TokenIds:
    """Sample rows that have a top_k: all else is arithmetic on few tokens."""
    values, ids = top_k(logits, sampled.rows, sampled.top_ks)
    exact = values.astype(np.float64)
    weights = np.exp((exact - exact[:, :1]) / sampled.temperatures[:, None])
    weights[np.arange(weights.shape[1]) >= sampled.top_ks[:, None]] = 0.0
    sums = np.cumsum(weights, axis=1)
    beyond = sums - weights >= sampled.top_ps[:, None] * sums[:, -1:]
    weights[beyond & (sampled.top_ps[:, None] < 1)] = 0.0
    weights[weights < sampled.min_ps[:, None]] = 0.0
    columns, _, _ = find_crossing(weights, sampled.uniforms())
    tokens: TokenIds = ids[np.arange(len(ids)), columns]
    return tokens


def _draw_from_all(logits: StepLogits, sampled: SamplingRows) -> TokenIds:
    """Sample rows that have no top_k."""
    floors = None
    if sampled.min_ps.any():
        with np.errstate(divide="ignore"):
            offsets = sampled.temperatures * np.log(sampled.min_ps)
        floors = (sampled.maxima + offsets).astype(np.float32)
    exp_sums = logits.chunk_exp_sums(sampled.rows, sampled.maxima, sampled.temperatures, floors)
    tokens = invert(logits, sampled, exp_sums, sampled.uniforms(), floors)
    narrow = np.flatnonzero(sampled.top_ps < 1)
    if narrow.size:
        totals = exp_sums.sum(axis=1)
        cut = narrow[sampled.min_ps[narrow] > 0]
        if cut.size:
            # top_p is a share of all tokens' weight, whatever min_p drops.
            members = sampled.of(cut)
            totals[cut] = logits.chunk_exp_sums(members.rows, members.maxima, members.temperatures).sum(axis=1)
        tokens[narrow] = keep_or_redraw(logits, sampled.of(narrow), totals[narrow], tokens[narrow])
    return tokens


#: Binary digits by which the k of rows that go together may differ.
_SIZE_STEP = 3
