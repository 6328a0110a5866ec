"""How a request wants its tokens chosen.

Owns the bounds and defaults of every field of it. Pure; draws a seed where none was given.
"""

from __future__ import annotations

import secrets

from trident_backend.requests.bad_words import parse_bad_words
from trident_backend.requests.fields import RequestFields
from trident_backend.requests.logit_bias import MAX_BIAS_BYTES, parse_logit_bias
from trident_backend.sequences.sampling_params import SamplingParams
from trident_ensemble.contract import tensors
from trident_ensemble.contract.errors import RequestError
from trident_ensemble.contract.manifest import Generation

#: As in OpenAI's interface.
MAX_PENALTY = 2.0
MAX_TOP_LOG_PROBS = 20


def parse_sampling(fields: RequestFields, defaults: Generation, vocab_size: int, min_tokens: int) -> SamplingParams:
    """The parameters of a request's first sequence.

    Args:
        fields: the request's.
        defaults: the checkpoint's.
        vocab_size: the network's.
        min_tokens: see `SamplingParams`.

    Raises:
        RequestError: a field is out of bounds.
    """
    fields.only(tensors.BEAM_WIDTH, 1, "there is no beam search; num_return_sequences gives several answers")
    fields.only(tensors.LENGTH_PENALTY, 1, "it is of beam search, which there is not")
    temperature = fields.number(tensors.TEMPERATURE, defaults.temperature, 0.0)
    asks_to_sample = any(spec in fields for spec in (tensors.TOP_K, tensors.TOP_P, tensors.MIN_P))
    if asks_to_sample and tensors.TEMPERATURE not in fields and temperature == 0:
        temperature = 1.0
    top_k = fields.integer(tensors.TOP_K, defaults.top_k, 0)
    top_p = fields.number(tensors.TOP_P, defaults.top_p, 0.0, 1.0)
    if top_p == 0:
        # As in tensorrtllm_backend, where it is the default: the likeliest token alone, unless the request's top_k says
        # how many.
        top_k, top_p = (top_k if tensors.TOP_K in fields else 0) or 1, 1.0
    num_top = fields.integer(tensors.NUM_TOP_LOG_PROBS, 0, 0, min(MAX_TOP_LOG_PROBS, vocab_size))
    of_prompt = fields.flag(tensors.RETURN_PROMPT_LOG_PROBS, default=False)
    bad_words = parse_bad_words(
        fields.name(tensors.BAD_WORDS_LIST), fields.integers(tensors.BAD_WORDS_LIST), vocab_size
    )
    return SamplingParams(
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=fields.number(tensors.MIN_P, defaults.min_p, 0.0, 1.0),
        repetition_penalty=fields.positive(tensors.REPETITION_PENALTY, defaults.repetition_penalty),
        presence_penalty=fields.number(tensors.PRESENCE_PENALTY, 0.0, -MAX_PENALTY, MAX_PENALTY),
        frequency_penalty=fields.number(tensors.FREQUENCY_PENALTY, 0.0, -MAX_PENALTY, MAX_PENALTY),
        logit_bias=parse_logit_bias(fields.text(tensors.LOGIT_BIAS, MAX_BIAS_BYTES), vocab_size),
        bad_words=tuple(dict.fromkeys((*defaults.bad_words, *bad_words))),
        min_tokens=min_tokens,
        seed=fields.integer(tensors.SEED, secrets.randbits(64), 0, 2**64 - 1),
        # Whoever asks for the likeliest tokens, and not for which places, wants those of the output.
        log_probs=fields.flag(tensors.RETURN_LOG_PROBS, default=num_top > 0 and not of_prompt),
        prompt_log_probs=of_prompt,
        num_top_log_probs=num_top,
    )


def parse_min_tokens(fields: RequestFields, defaults: Generation, max_tokens: int) -> int:
    """The fewest tokens.

    Raises:
        RequestError: they are more than the most.
    """
    if tensors.MIN_TOKENS not in fields:
        # What the checkpoint wants cannot be more than what the request allows.
        return min(defaults.min_tokens, max_tokens)
    min_tokens = fields.integer(tensors.MIN_TOKENS, 0, 0)
    if min_tokens > max_tokens:
        name = fields.name(tensors.MIN_TOKENS)
        raise RequestError(name, f"must be at most max_tokens {max_tokens}, not {min_tokens}")
    return min_tokens
