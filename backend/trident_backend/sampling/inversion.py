"""Samples from all tokens of a row, by inverting their cumulative distribution in two levels.

Owns the arithmetic. An engine may sum the few hundred weights of a chunk in single precision; here weights and sums are
never added in less than double precision, as a running single-precision sum over a large vocabulary would lose its rare
tokens.
"""

from __future__ import annotations

import numpy as np

from trident_backend.engine.protocol import CHUNK_WIDTH, Doubles, FloatArray, StepLogits, TokenIds
from trident_backend.sampling.sampling_rows import SamplingRows


def invert(
    logits: StepLogits, sampled: SamplingRows, exp_sums: Doubles, shares: Doubles, floors: FloatArray | None = None
) -> TokenIds:
    """Return the tokens at which the rows' running weights pass these shares of the whole; each weighs more than 0.

    Args:
        logits: of the step.
        sampled: n rows of it.
        exp_sums: `[n, C]`, the sums of weights by chunk that `StepLogits.chunk_exp_sums` returns; some are above 0.
        shares: `[n]`, in [0, 1).
        floors: `[n]`, logits below which a token weighs nothing, as for the sums; None where all weigh.
    """
    vocab_size = logits.shape[1]
    numbers = np.arange(len(exp_sums))
    chunks, before, targets = find_crossing(exp_sums, shares)
    ids = chunks[:, None] * CHUNK_WIDTH + np.arange(CHUNK_WIDTH)
    values = logits.read(sampled.rows[:, None], np.minimum(ids, vocab_size - 1))
    weights = np.exp((values.astype(np.float64) - sampled.maxima[:, None]) / sampled.temperatures[:, None])
    weights[ids >= vocab_size] = 0.0
    if floors is not None:
        weights[values < floors[:, None]] = 0.0
    columns, _, _ = find_crossing(weights, (targets - before) / exp_sums[numbers, chunks])
    tokens: TokenIds = ids[numbers, columns]
    return tokens


def find_crossing(weights: Doubles, shares: Doubles) -> tuple[TokenIds, Doubles, Doubles]:
    """Find where each row's running sum passes its share of the whole.

    Args:
        weights: `[n, m]`, some of each row's above 0.
        shares: `[n]`, from 0 to 1.

    Returns:
        columns `[n]`, whose weights are above 0; the sums before them `[n]`; and the shares times the wholes `[n]`.
    """
    sums = np.cumsum(weights, axis=1)
    # Rounding must not carry a target to the whole sum, which nothing passes.
    targets = np.minimum(np.maximum(shares * sums[:, -1], 0.0), np.nextafter(sums[:, -1], 0.0))
    columns = (sums <= targets[:, None]).sum(axis=1)
    before = np.where(columns > 0, sums[np.arange(len(sums)), columns - 1], 0.0)
    return columns, before, targets
