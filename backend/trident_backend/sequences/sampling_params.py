"""How the tokens of one sequence are chosen.

Owns the parameters and what each means. Never checks one: requests are read in `requests`.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class SamplingParams:
    """How the next token is chosen. The changes apply in this order: repetition penalty, presence and frequency
    penalty, biases, bans (bad words, `min_tokens`, a guide's mask), temperature, top_k, top_p, min_p.

    Args:
        temperature: 0 is greedy.
        top_k: keep the k most likely tokens; 0 keeps all.
        top_p: keep the likeliest tokens that together reach this probability; 1 keeps all.
        min_p: keep the tokens at least so likely as this share of the likeliest; 0 keeps all.
        repetition_penalty: divides (or, below 0, multiplies) the logits of tokens of prompt and output; 1 is none.
        presence_penalty: taken off the logits of tokens of the output; 0 is none.
        frequency_penalty: the same for every time that they stand there; 0 is none.
        logit_bias: token ids and what is added to their logits.
        bad_words: token sequences that must not come about.
        min_tokens: before so many tokens of output, no token that ends the text.
        seed: of this request's own random numbers, below 2**64.
        index: of the sequence among those of its request; each draws its own random numbers from the seed.
        log_probs: whether the output's log probabilities are wanted.
        prompt_log_probs: whether the prompt's are.
        num_top_log_probs: how many of the likeliest tokens come with each.
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
