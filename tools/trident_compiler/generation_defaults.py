"""What a checkpoint's generation_config.json says about generating.

Owns which of its settings become the engine's defaults, with transformers' meaning, and which are named as not served.
Never applies one.
"""

from __future__ import annotations

from trident_backend.engine.artifact import Generation
from trident_compiler.json_config import JsonConfig

#: What transformers samples with where a checkpoint wants sampling and names no number.
_TEMPERATURE, _TOP_K, _TOP_P = 1.0, 50, 1.0
#: Settings that change what transformers generates and that are not served, with the values that change nothing.
_NOT_SERVED: dict[str, tuple[object, ...]] = {
    "encoder_repetition_penalty": (None, 1, 1.0),
    "no_repeat_ngram_size": (None, 0),
    "typical_p": (None, 1, 1.0),
    "epsilon_cutoff": (None, 0, 0.0),
    "eta_cutoff": (None, 0, 0.0),
    "begin_suppress_tokens": (None, []),
    "sequence_bias": (None, {}),
    "min_length": (None, 0),
    "forced_eos_token_id": (None,),
    "num_beams": (None, 1),
    "guidance_scale": (None, 1, 1.0),
    "exponential_decay_length_penalty": (None,),
}


def not_served(generation: JsonConfig) -> tuple[str, ...]:
    """Settings that change what transformers generates and are not applied, each as `key = value`."""
    return tuple(
        f"{key} = {generation.values[key]}"
        for key, neutral in _NOT_SERVED.items()
        if key in generation.values and generation.values[key] not in neutral
    )


def read_generation(generation: JsonConfig, config: JsonConfig, vocab_size: int) -> Generation:
    """The defaults of an engine.

    Args:
        generation: `generation_config.json`; empty if there is none.
        config: `config.json`, which may name the end of text.
        vocab_size: the network's.

    Raises:
        CheckpointError: a setting that is not what it should be; named.
    """
    samples = generation.flag("do_sample")
    end_ids = _end_ids(generation, config, vocab_size)
    return Generation(
        end_ids=end_ids,
        temperature=generation.number("temperature", _TEMPERATURE) if samples else 0.0,
        top_k=generation.integer("top_k", _TOP_K, least=0) if samples else 0,
        top_p=_share(generation, "top_p", _TOP_P) if samples else 1.0,
        min_p=_share(generation, "min_p", 0.0) if samples and generation.values.get("min_p") else 0.0,
        repetition_penalty=generation.number("repetition_penalty", 1.0),
        min_tokens=generation.integer("min_new_tokens", 0, least=0),
        bad_words=_bad_words(generation, vocab_size, end_ids),
        stop_strings=_stop_strings(generation),
    )


def _end_ids(generation: JsonConfig, config: JsonConfig, vocab_size: int) -> tuple[int, ...]:
    source = generation if generation.values.get("eos_token_id") is not None else config
    ends = source.values.get("eos_token_id")
    end_ids = [] if ends is None else ends if isinstance(ends, list) else [ends]
    if not _are_tokens(end_ids, vocab_size):
        raise source.refuse("eos_token_id", f"must be token ids from 0 to {vocab_size - 1}")
    return tuple(sorted(set(end_ids)))


def _share(generation: JsonConfig, key: str, default: float) -> float:
    value = generation.number(key, default)
    if value > 1:
        raise generation.refuse(key, "must be at most 1")
    return value


def _bad_words(generation: JsonConfig, vocab_size: int, end_ids: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    """Sequences that must not come about; a suppressed token is one of length 1.

    As in transformers, an end of text among the bad words is none: the text could never end.
    """
    words: list[tuple[int, ...]] = []
    bad_words = generation.values.get("bad_words_ids") or []
    suppressed = generation.values.get("suppress_tokens") or []
    if not isinstance(bad_words, list) or not all(word and _are_tokens(word, vocab_size) for word in bad_words):
        raise generation.refuse("bad_words_ids", f"must be lists of token ids from 0 to {vocab_size - 1}")
    if not _are_tokens(suppressed, vocab_size):
        raise generation.refuse("suppress_tokens", f"must be token ids from 0 to {vocab_size - 1}")
    words.extend(tuple(word) for word in bad_words if len(word) > 1 or word[0] not in end_ids)
    words.extend((token_id,) for token_id in suppressed)
    return tuple(dict.fromkeys(words))


def _stop_strings(generation: JsonConfig) -> tuple[str, ...]:
    value = generation.values.get("stop_strings") or []
    strings = [value] if isinstance(value, str) else value
    if not isinstance(strings, list) or not all(isinstance(string, str) and string for string in strings):
        raise generation.refuse("stop_strings", "must be texts")
    return tuple(strings)


def _are_tokens(value: object, vocab_size: int) -> bool:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < vocab_size for item in value)
