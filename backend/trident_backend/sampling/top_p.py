"""top_p over a whole vocabulary, without sorting it.

Owns the rejection: a token drawn from all stays if the tokens likelier than it weigh less than top_p's share of the
whole. If not, everything that top_p keeps is likelier than it, and the next draw is from the likelier tokens alone. So
the draw is exact: it takes 1 / top_p attempts in the mean at most, each of which is one pass of
`StepLogits.chunk_exp_sums`.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from trident_backend.engine.protocol import Doubles, StepLogits, TokenIds
from trident_backend.sampling.inversion import invert
from trident_backend.sampling.sampling_rows import SamplingRows


def keep_or_redraw(logits: StepLogits, drawing: SamplingRows, totals: Doubles, tokens: TokenIds) -> TokenIds:
    """Tokens that top_p keeps, `[n]`.

    Args:
        logits: of the step.
        drawing: n rows with a top_p.
        totals: `[n]`, the weights of all tokens together.
        tokens: `[n]`, drawn from all tokens, or from all that min_p keeps.
    """
    tokens, attempt = tokens.copy(), 0
    # The likeliest token is always kept.
    pending = np.flatnonzero(tokens != drawing.likeliest)
    while pending.size:
        attempt += 1
        tokens[pending], is_rejected = _judge(logits, drawing.of(pending), totals[pending], tokens[pending], attempt)
        pending = pending[is_rejected & (tokens[pending] != drawing.likeliest[pending])]
    return tokens


def _judge(
    logits: StepLogits, drawing: SamplingRows, totals: Doubles, tokens: TokenIds, attempt: int
) -> tuple[TokenIds, npt.NDArray[np.bool_]]:
    """Those of n tokens that are kept, others in place of the rest, and which of the others may not be kept either."""
    values = logits.read(drawing.rows, tokens)
    floors = np.nextafter(values, np.float32(np.inf))
    masses = logits.chunk_exp_sums(drawing.rows, drawing.maxima, drawing.temperatures, floors)
    likelier = masses.sum(axis=1)
    weights = np.exp((values.astype(np.float64) - drawing.maxima) / drawing.temperatures)
    # How many tokens of this very weight top_p has room for.
    room = np.ceil((drawing.top_ps * totals - likelier) / weights)
    shares = drawing.uniforms(attempt)
    is_redrawn = is_rejected = room <= 0
    # Lower ids of the same weight come first; there can be too many only if there are so many lower ids.
    crowded = np.flatnonzero(~is_rejected & (room <= tokens))
    equals = logits.find_ties(drawing.rows[crowded], values[crowded], room[crowded].astype(np.int64))
    for number, kept in zip(crowded.tolist(), equals, strict=True):
        if kept[-1] < tokens[number]:
            # What is kept is known by now: all that is likelier, and these. So this draw is the last.
            target = shares[number] * (likelier[number] + len(kept) * weights[number])
            if target < likelier[number]:
                shares[number] = target / likelier[number]
                is_redrawn = is_redrawn | (np.arange(len(tokens)) == number)
            else:
                place = int((target - likelier[number]) / weights[number])
                tokens[number] = kept[min(place, len(kept) - 1)]
    redrawn = np.flatnonzero(is_redrawn)
    if redrawn.size:
        tokens[redrawn] = invert(logits, drawing.of(redrawn), masses[redrawn], shares[redrawn], floors[redrawn])
    return tokens, is_rejected
