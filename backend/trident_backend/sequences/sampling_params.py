"""How the tokens of one sequence are chosen.

Owns the parameters, what each means, and which work they ask for. Never checks one: requests are read in `requests`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property

import numpy as np

#: The parameters of random choice as one record, which many sequences' can be read from as columns.
PACKED_PARAMS = np.dtype(
    [
        ("temperature", np.float64),
        ("top_p", np.float64),
        ("min_p", np.float64),
        ("top_k", np.int64),
        ("seed", np.uint64),
        ("index", np.uint64),
    ]
)

#: The bias that bans its token, whatever the logit is, as OpenAI describes it.
BANNING_BIAS = -100.0


class Traits(IntEnum):
    """The work that a row of logits needs besides its argmax; each kind is one bit."""

    #: Tokens that have come before are penalised.
    PENALISED = 1
    #: Logits are biased, or tokens banned, for all of the request.
    EDITED = 2
    #: The token is sampled: it need not be the argmax.
    SAMPLED = 4
    #: The log probability of the token is wanted.
    LOG_PROBS = 8
    #: The token is known already: nothing is chosen.
    SCORED = 16


@dataclass(frozen=True)
class SamplingParams:
    """The parameters by which the next token is chosen.

    The changes apply in this order: repetition penalty, presence and frequency penalty, biases, bans (bad words, biases
    of -100, `min_tokens`, a guide's mask), temperature, top_k, top_p, min_p.

    Args:
        temperature: divides the logits; 0 is greedy.
        top_k: keep the k most likely tokens; 0 keeps all.
        top_p: keep the most likely tokens that together reach this probability; 1 keeps all.
        min_p: drop tokens whose probability is below min_p times the largest; 0 keeps all.
        repetition_penalty: divides (or, below 0, multiplies) the logits of tokens of prompt and output; 1 is none.
        presence_penalty: subtracted from the logits of tokens of the output; 0 is none.
        frequency_penalty: subtracted once for every time that they are in the output; 0 is none.
        logit_bias: token ids and what is added to their logits; `BANNING_BIAS` bans a token.
        bad_words: token id sequences that are never generated.
        min_tokens: tokens of output before which no token that ends the text is chosen.
        seed: of this request's own random numbers, below 2**64.
        index: of the sequence among those of its request; each draws its own random numbers from the seed.
        log_probs: whether the output's log probabilities are wanted.
        prompt_log_probs: whether the prompt's are.
        num_top_log_probs: how many of the most likely tokens come with each.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    bad_words: tuple[tuple[int, ...], ...] = ()
    min_tokens: int = 0
    seed: int = 0
    index: int = 0
    log_probs: bool = False
    prompt_log_probs: bool = False
    num_top_log_probs: int = 0

    @cached_property
    def traits(self) -> int:
        """The `Traits` of a row that chooses a token of the output."""
        traits = 0
        if self.repetition_penalty != 1 or self.presence_penalty != 0 or self.frequency_penalty != 0:
            traits |= Traits.PENALISED
        if self.logit_bias or self.bad_words or self.min_tokens:
            traits |= Traits.EDITED
        if self.temperature > 0 and self.top_k != 1 and self.top_p > 0:
            traits |= Traits.SAMPLED
        if self.log_probs:
            traits |= Traits.LOG_PROBS
        return traits

    @cached_property
    def scored_traits(self) -> int:
        """The `Traits` of a row whose token is known: it stands in the prompt."""
        return Traits.SCORED | Traits.LOG_PROBS if self.prompt_log_probs else int(Traits.SCORED)

    @cached_property
    def packed(self) -> bytes:
        """The parameters of random choice, as `PACKED_PARAMS` lays them out."""
        values = (self.temperature, self.top_p, self.min_p, self.top_k, self.seed, self.index)
        return np.array([values], PACKED_PARAMS).tobytes()
