"""What came of a step's rows of logits, as plain values.

Owns no decision: the sampler makes them, the scheduler commits them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

#: In place of a token id: every token of the row is banned.
NO_TOKEN = -1
#: In place of a token id: the row's largest logit is NaN or infinite, so the engine has failed.
NOT_FINITE = -2


class TokenLogProbs(NamedTuple):
    """Natural logarithms of probabilities at one place, of the model's own distribution: at temperature 1, before
    penalties, biases, bans and filters.

    Args:
        log_prob: of the token that stands there.
        top_ids: the likeliest tokens, as many as the request asked for, the likeliest first.
        top_log_probs: theirs.
    """

    log_prob: float
    top_ids: tuple[int, ...] = ()
    top_log_probs: tuple[float, ...] = ()


@dataclass(frozen=True)
class Choices:
    """One step's choices, by row of `SchedulerOutput.rows`.

    Args:
        token_ids: the chosen token of each row, NO_TOKEN or NOT_FINITE where there is none; of a scored row, the token
            it has.
        log_probs: of those rows whose sequence asks for them.
    """

    token_ids: list[int]
    log_probs: Mapping[int, TokenLogProbs] = field(default_factory=dict)
