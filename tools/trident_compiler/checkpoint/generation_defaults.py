"""What a checkpoint's generation_config.json says about generating.

Owns which of its settings become the engine's defaults, with transformers' meaning, and which are named as not served.
Never applies one.
"""

from __future__ import annotations

from typing import NamedTuple

from trident_compiler.checkpoint.json_config import MOST, JsonConfig, whole_number
from trident_ensemble.contract.manifest import Generation

#: What transformers samples with where a checkpoint wants sampling and names no number.
_TEMPERATURE, _TOP_K, _TOP_P = 1.0, 50, 1.0
#: Settings that change what transformers generates and that are not served, with the values that change nothing.
_NOT_SERVED: dict[str, tuple[object, ...]] = {
    "encoder_repetition_penalty": (None, 1, 1.0),
    "encoder_no_repeat_ngram_size": (None, 0),
    "no_repeat_ngram_size": (None, 0),
    "typical_p": (None, 1, 1.0),
    "top_h": (None, 0),
    "epsilon_cutoff": (None, 0, 0.0),
    "eta_cutoff": (None, 0, 0.0),
    "begin_suppress_tokens": (None, []),
    "sequence_bias": (None, {}),
    "min_length": (None, 0),
    "forced_bos_token_id": (None,),
    "forced_eos_token_id": (None,),
    "num_beams": (None, 1),
    "num_beam_groups": (None, 1),
    "diversity_penalty": (None, 0, 0.0),
    "penalty_alpha": (None, 0, 0.0),
    "dola_layers": (None,),
    "force_words_ids": (None, []),
    "constraints": (None, []),
    "guidance_scale": (None, 1, 1.0),
    "exponential_decay_length_penalty": (None,),
    "renormalize_logits": (None, False),
    "token_healing": (None, False),
    "watermarking_config": (None,),
}


def not_served(generation: JsonConfig) -> tuple[str, ...]:
    """Return the settings that change what transformers generates and are not applied, each as `key = value`."""
    return tuple(
        f"{key} = {generation.values[key]}"
        for key, neutral in _NOT_SERVED.items()
        if key in generation.values and generation.values[key] not in neutral
    )


def read_generation(generation: JsonConfig, end_ids: tuple[int, ...], vocab_size: int) -> Generation:
    """Return the defaults of an engine.

    Args:
        generation: `generation_config.json`; empty if there is none.
        end_ids: the ids of the checkpoint's `EndOfText`.
        vocab_size: the network's.

    Raises:
        CheckpointError: a setting that is not what it should be; named.
    """
    sampling = _sampling(generation, vocab_size) if generation.flag("do_sample") else _GREEDY
    return Generation(
        end_ids=end_ids,
        temperature=sampling.temperature,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
        min_p=sampling.min_p,
        repetition_penalty=generation.number("repetition_penalty", 1.0),
        min_tokens=generation.integer("min_new_tokens", 0, least=0),
        bad_words=_bad_words(generation, vocab_size, end_ids),
        stop_strings=_stop_strings(generation),
    )


class _Sampling(NamedTuple):
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0


_GREEDY = _Sampling()


def _sampling(generation: JsonConfig, vocab_size: int) -> _Sampling:
    """Give settings beyond their range their one plain meaning, as requests do.

    A temperature of 0 is greedy, a top_p of 0 keeps the likeliest token alone, and a top_k that is negative or as large
    as the vocabulary keeps all.
    """
    temperature = generation.number("temperature", _TEMPERATURE, zero=True)
    top_k = generation.integer("top_k", _TOP_K, least=-MOST)
    top_p = _share(generation, "top_p", _TOP_P)
    min_p = _share(generation, "min_p", 0.0)
    if temperature == 0:
        return _GREEDY
    if top_p == 0:
        top_k, top_p = 1, 1.0
    return _Sampling(temperature, 0 if top_k < 0 else min(top_k, vocab_size), top_p, min_p)


def _share(generation: JsonConfig, key: str, default: float) -> float:
    value = generation.number(key, default, zero=True)
    if value > 1:
        raise generation.refuse(key, "must be at most 1")
    return value


def _bad_words(generation: JsonConfig, vocab_size: int, end_ids: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    """Return the sequences that must not come about; a suppressed token is one of length 1.

    As in transformers, an end of text among the bad words is none: the text could never end.
    """
    bad_words = generation.values.get("bad_words_ids")
    bad_words = [] if bad_words is None else bad_words
    words = [token_ids(word, vocab_size) for word in bad_words] if isinstance(bad_words, list) else [None]
    if not all(words):
        raise generation.refuse("bad_words_ids", f"must be lists of token ids from 0 to {vocab_size - 1}")
    suppressed = generation.values.get("suppress_tokens")
    suppressed_ids = token_ids([] if suppressed is None else suppressed, vocab_size)
    if suppressed_ids is None:
        raise generation.refuse("suppress_tokens", f"must be token ids from 0 to {vocab_size - 1}")
    sequences = [word for word in words if word and (len(word) > 1 or word[0] not in end_ids)]
    return tuple(dict.fromkeys((*sequences, *((token_id,) for token_id in suppressed_ids))))


def _stop_strings(generation: JsonConfig) -> tuple[str, ...]:
    value = generation.values.get("stop_strings")
    strings = [] if value is None else [value] if isinstance(value, str) and value else value
    if not isinstance(strings, list) or not all(isinstance(string, str) and string for string in strings):
        raise generation.refuse("stop_strings", "must be texts, none of them empty")
    return tuple(strings)


def token_ids(value: object, vocab_size: int) -> tuple[int, ...] | None:
    """Return a JSON list of token ids; None where it is anything else or names a token that the network lacks."""
    if not isinstance(value, list):
        return None
    ids = [whole_number(item) for item in value]
    valid = tuple(token_id for token_id in ids if token_id is not None and 0 <= token_id < vocab_size)
    return valid if len(valid) == len(ids) else None
