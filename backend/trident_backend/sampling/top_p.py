"""Applies top_p to a whole vocabulary by rejection.

Owns the rejection: a token sampled from all stays if the tokens more likely than it weigh less than top_p's share of
the whole. If not, everything that top_p keeps is more likely than it, and the next sample is from the more likely
tokens alone. So the sample is exact: it takes 1 / top_p attempts in the mean at most, each of which is one pass of
`StepLogits.chunk_exp_sums`. Never sorts a row.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from trident_backend.engine.protocol import Doubles, StepLogits, TokenIds
from trident_backend.sampling.inversion import invert
from trident_backend.sampling.sampling_rows import SamplingRows


def keep_or_redraw(logits: StepLogits, sampled: SamplingRows, totals: Doubles, tokens: TokenIds) -> TokenIds:
    """Return tokens that top_p keeps, `[n]`: those given, or others in place of those that it does not keep.

    Args:
        logits: of the step.
        sampled: n rows with a top_p.
        totals: `[n]`, the weights of all tokens together.
        tokens: `[n]`, sampled from all tokens, or from all that min_p keeps.
    """
    tokens, attempt = tokens.copy(), 0
    # The most likely token is always kept.
    pending = np.flatnonzero(tokens != sampled.argmax)
    while pending.size:
        attempt += 1
        tokens[pending], is_rejected = _judge(logits, sampled.of(pending), totals[pending], tokens[pending], attempt)
        pending = pending[is_rejected & (tokens[pending] != sampled.argmax[pending])]
    return tokens


def _judge(
    logits: StepLogits, sampled: SamplingRows, totals: Doubles, tokens: TokenIds, attempt: int
) -> tuple[TokenIds, npt.NDArray[np.bool_]]:
    """Return the tokens that are kept, others in place of the rest, and whether those others are to be judged again."""
    values = logits.read(sampled.rows, tokens)
    floors = np.nextafter(values, np.float32(np.inf))
    exp_sums = logits.chunk_exp_sums(sampled.rows, sampled.maxima, sampled.temperatures, floors)
    above = exp_sums.sum(axis=1)
    weights = np.exp((values.astype(np.float64) - sampled.maxima) / sampled.temperatures)
    # How many tokens of this very weight top_p has room for.
    room = np.ceil((sampled.top_ps * totals - above) / weights)
    shares = sampled.uniforms(attempt)
    is_redrawn = is_rejected = room <= 0
    # Lower ids of the same weight come first; there can be too many only if there are so many lower ids.
    crowded = np.flatnonzero(~is_rejected & (room <= tokens))
    equals = logits.find_ties(sampled.rows[crowded], values[crowded], room[crowded].astype(np.int64))
    for number, kept in zip(crowded.tolist(), equals, strict=True):
        if kept[-1] < tokens[number]:
            # What is kept is known by now: all that is more likely, and these. So this sample is the last.
            target = shares[number] * (above[number] + len(kept) * weights[number])
            if target < above[number]:
                shares[number] = target / above[number]
                is_redrawn = is_redrawn | (np.arange(len(tokens)) == number)
            else:
                index = int((target - above[number]) / weights[number])
                tokens[number] = kept[min(index, len(kept) - 1)]
    redrawn = np.flatnonzero(is_redrawn)
    if redrawn.size:
        tokens[redrawn] = invert(logits, sampled.of(redrawn), exp_sums[redrawn], shares[redrawn], floors[redrawn])
    return tokens, is_rejected
