"""A draw from all tokens of a row, by inverting their cumulative distribution in two levels.

Owns the arithmetic. The sums of a few hundred weights are single precision, everything that adds them up is double:
a running single-precision sum over a large vocabulary would lose its rare tokens.
"""

from __future__ import annotations

import numpy as np

from trident_backend.engine.protocol import CHUNK_WIDTH, Doubles, FloatArray, StepLogits, TokenIds
from trident_backend.sampling.sampling_rows import SamplingRows


def invert(
    logits: StepLogits, drawing: SamplingRows, masses: Doubles, shares: Doubles, floors: FloatArray | None = None
) -> TokenIds:
    """The tokens at which the rows' running weights pass these shares of the whole; each weighs more than 0.

    Args:
        logits: of the step.
        drawing: n rows of it.
        masses: `[n, C]`, the weights' sums by chunk, some of them above 0; see `StepLogits.chunk_exp_sums`.
        shares: `[n]`, in [0, 1).
        floors: `[n]`, as the masses were asked for.
    """
    vocab_size = logits.shape[1]
    numbers = np.arange(len(masses))
    chunks, before, targets = passed(masses, shares)
    ids = chunks[:, None] * CHUNK_WIDTH + np.arange(CHUNK_WIDTH)
    values = logits.read(drawing.rows[:, None], np.minimum(ids, vocab_size - 1))
    weights = np.exp((values.astype(np.float64) - drawing.maxima[:, None]) / drawing.temperatures[:, None])
    weights[ids >= vocab_size] = 0.0
    if floors is not None:
        weights[values < floors[:, None]] = 0.0
    places, _, _ = passed(weights, (targets - before) / masses[numbers, chunks])
    tokens: TokenIds = ids[numbers, places]
    return tokens


def passed(weights: Doubles, shares: Doubles) -> tuple[TokenIds, Doubles, Doubles]:
    """Where each row's running sum passes its share of the whole.

    Args:
        weights: `[n, m]`, some of each row's above 0.
        shares: `[n]`, from 0 to 1.

    Returns:
        the places `[n]`, whose weights are above 0; the sums before them; and the shares of the wholes.
    """
    sums = np.cumsum(weights, axis=1)
    # Rounding must not carry a target to the whole sum, which nothing passes.
    targets = np.minimum(np.maximum(shares * sums[:, -1], 0.0), np.nextafter(sums[:, -1], 0.0))
    places = (sums <= targets[:, None]).sum(axis=1)
    before = np.where(places > 0, sums[np.arange(len(sums)), places - 1], 0.0)
    return places, before, targets
