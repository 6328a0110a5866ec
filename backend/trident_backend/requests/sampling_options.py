"""The options by which a request says how its tokens are chosen.

Owns the syntax, bounds and defaults of these options, biases and banned words included. Draws a seed where the request
gives none, and is pure otherwise. Never changes a logit.
"""

from __future__ import annotations

import json
import secrets
from itertools import pairwise
from typing import Any

from trident_backend.requests.fields import RequestFields
from trident_backend.sequences.sampling_params import SamplingParams
from trident_ensemble.contract import tensors
from trident_ensemble.contract.errors import RequestError
from trident_ensemble.contract.manifest import Generation

#: As in OpenAI's interface.
MAX_PENALTY = 2.0
MAX_TOP_LOG_PROBS = 20
MAX_NUM_BAD_TOKENS = 16384
MAX_NUM_BIASES = 1024
MAX_BIAS = 100.0
MAX_BIAS_BYTES = 65536


def parse_sampling(fields: RequestFields, defaults: Generation, vocab_size: int, min_tokens: int) -> SamplingParams:
    """Read the sampling parameters of a request's first sequence.

    Args:
        fields: the fields of the request.
        defaults: the checkpoint's generation settings.
        vocab_size: width of the network's logits; every token id must be below it.
        min_tokens: passed on to `SamplingParams`.

    Raises:
        RequestError: a field is out of bounds.
    """
    fields.only(tensors.BEAM_WIDTH, 1, "beam search is not supported; num_return_sequences gives several answers")
    fields.only(tensors.LENGTH_PENALTY, 1, "it belongs to beam search, which is not supported")
    temperature = fields.number(tensors.TEMPERATURE, defaults.temperature, 0.0)
    asks_to_sample = any(spec in fields for spec in (tensors.TOP_K, tensors.TOP_P, tensors.MIN_P))
    if asks_to_sample and tensors.TEMPERATURE not in fields and temperature == 0:
        temperature = 1.0
    top_k = fields.integer(tensors.TOP_K, defaults.top_k, 0)
    top_p = fields.number(tensors.TOP_P, defaults.top_p, 0.0, 1.0)
    if top_p == 0:
        # As in tensorrtllm_backend, where 0 is the default: the most likely token alone, unless the request's top_k
        # says how many.
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
        # A request for the top tokens that does not say at which positions means those of the output.
        log_probs=fields.flag(tensors.RETURN_LOG_PROBS, default=num_top > 0 and not of_prompt),
        prompt_log_probs=of_prompt,
        num_top_log_probs=num_top,
    )


def parse_min_tokens(fields: RequestFields, defaults: Generation, max_tokens: int) -> int:
    """Read the least number of tokens to generate.

    Raises:
        RequestError: the request asks for more than `max_tokens`.
    """
    if tensors.MIN_TOKENS not in fields:
        # The checkpoint's minimum cannot exceed what the request allows.
        return min(defaults.min_tokens, max_tokens)
    min_tokens = fields.integer(tensors.MIN_TOKENS, 0, 0)
    if min_tokens > max_tokens:
        name = fields.name(tensors.MIN_TOKENS)
        raise RequestError(name, f"must be at most max_tokens {max_tokens}, not {min_tokens}")
    return min_tokens


def parse_bad_words(field: str, values: list[int], vocab_size: int) -> tuple[tuple[int, ...], ...]:
    """Read banned words from the form in which tensorrtllm_backend's clients send them; return each word's token ids.

    Args:
        field: the client's name of the field, for errors.
        values: a flattened `[2, n]`. The first row holds the ids of all words, one word after another; the second row
            says where each word ends in the first, in rising order. Both may be padded, the second one with -1.
        vocab_size: every id must be below it.

    Raises:
        RequestError: the shape is wrong, or an id or an end is out of bounds.
    """
    if len(values) > 2 * MAX_NUM_BAD_TOKENS:
        raise RequestError(field, f"{len(values) // 2} tokens are too many: at most {MAX_NUM_BAD_TOKENS}")
    if len(values) % 2:
        raise RequestError(field, "must have the shape [2, n]")
    num_tokens = len(values) // 2
    token_ids, ends = values[:num_tokens], values[num_tokens:]
    while ends and ends[-1] == -1:
        ends.pop()
    for start, end in pairwise([0, *ends]):
        if not start < end <= num_tokens:
            raise RequestError(
                field, f"the ends of the words must rise from 1 to at most {num_tokens}, then be -1; not {end}"
            )
    words = tuple(tuple(token_ids[start:end]) for start, end in pairwise([0, *ends]))
    for token_id in token_ids[: ends[-1] if ends else 0]:
        if not 0 <= token_id < vocab_size:
            raise RequestError(field, f"every id must be from 0 to {vocab_size - 1}, not {token_id}")
    return words


def parse_logit_bias(text: str, vocab_size: int) -> tuple[tuple[int, float], ...]:
    """Read biases from JSON; return each token id with what is added to its logit, by rising id.

    Args:
        text: a JSON object from token ids to numbers; empty for no bias.
        vocab_size: every id must be below it.

    Raises:
        RequestError: the text is not such an object, or something in it is out of bounds.
    """
    if not text:
        return ()
    try:
        raw = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RequestError(_LOGIT_BIAS, f"is not valid JSON: {error}") from None
    if not isinstance(raw, dict):
        raise RequestError(_LOGIT_BIAS, 'must be a JSON object from token ids to numbers, such as {"13": -5.0}')
    if len(raw) > MAX_NUM_BIASES:
        raise RequestError(_LOGIT_BIAS, f"{len(raw)} tokens are too many: at most {MAX_NUM_BIASES}")
    return tuple(sorted((_token_id(key, vocab_size), _bias(key, value)) for key, value in raw.items()))


def _token_id(key: str, vocab_size: int) -> int:
    # A second spelling of one id, such as "07", would bias it twice.
    is_plain = key.isascii() and key.isdigit() and len(key) <= len(str(vocab_size)) and str(int(key)) == key
    if not is_plain or int(key) >= vocab_size:
        raise RequestError(_LOGIT_BIAS, f"{_shown(key)} is not a token id from 0 to {vocab_size - 1}")
    return int(key)


def _bias(key: str, value: Any) -> float:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not -MAX_BIAS <= value <= MAX_BIAS:
        problem = f"the bias of token {key} must be a number from {-MAX_BIAS:g} to {MAX_BIAS:g}, not {_shown(value)}"
        raise RequestError(_LOGIT_BIAS, problem)
    return float(value)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}..."


_LOGIT_BIAS = tensors.LOGIT_BIAS.name
_MAX_SHOWN = 40
