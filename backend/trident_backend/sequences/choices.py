"""What was chosen from a step's rows of logits, as plain values.

Owns their meaning. Never decides: the sampler does, and the scheduler commits.
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
    """Natural logarithms of probabilities at one position, of the model's own distribution: at temperature 1, before
    penalties, biases, bans and filters.

    Args:
        log_prob: of the token at the position.
        top_ids: the most likely tokens, as many as the request asked for, the most likely first.
        top_log_probs: their log probabilities.
    """

    log_prob: float
    top_ids: tuple[int, ...] = ()
    top_log_probs: tuple[float, ...] = ()


@dataclass(frozen=True)
class Choices:
    """One step's choices, by row of `SchedulerOutput.rows`.

    Args:
        token_ids: the chosen token of each row, NO_TOKEN or NOT_FINITE where there is none; of a scored row, the token
            that is known.
        log_probs: by row, of those rows whose sequence asks for them.
    """

    token_ids: list[int]
    log_probs: Mapping[int, TokenLogProbs] = field(default_factory=dict)
