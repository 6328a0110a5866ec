"""Biases on tokens, as a request's JSON says them.

Owns their syntax and bounds. Never changes a logit.
"""

from __future__ import annotations

import json
from typing import Any

from trident_ensemble.contract import tensors
from trident_ensemble.contract.errors import RequestError

MAX_NUM_BIASES = 1024
MAX_BIAS = 100.0
MAX_BIAS_BYTES = 65536
_FIELD = tensors.LOGIT_BIAS.name


def parse_logit_bias(text: str, vocab_size: int) -> tuple[tuple[int, float], ...]:
    """Token ids and what is added to their logits, by rising id.

    Args:
        text: a JSON object of token ids and numbers; empty for none.
        vocab_size: ids are below it.

    Raises:
        RequestError: it is no such object, or something in it is out of bounds.
    """
    if not text:
        return ()
    try:
        raw = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RequestError(_FIELD, f"is no JSON: {error}") from None
    if not isinstance(raw, dict):
        raise RequestError(_FIELD, 'must be a JSON object of token ids and numbers, as {"13": -5.0}')
    if len(raw) > MAX_NUM_BIASES:
        raise RequestError(_FIELD, f"{len(raw)} tokens are too many: at most {MAX_NUM_BIASES}")
    return tuple(sorted((_token_id(key, vocab_size), _bias(key, value)) for key, value in raw.items()))


def _token_id(key: str, vocab_size: int) -> int:
    # A second spelling of one id, as "07", would bias it twice.
    is_plain = key.isascii() and key.isdigit() and len(key) <= len(str(vocab_size)) and str(int(key)) == key
    if not is_plain or int(key) >= vocab_size:
        raise RequestError(_FIELD, f"{_shown(key)} is no token id from 0 to {vocab_size - 1}")
    return int(key)


def _bias(key: str, value: Any) -> float:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not -MAX_BIAS <= value <= MAX_BIAS:
        raise RequestError(
            _FIELD, f"of token {key} must be a number from {-MAX_BIAS:g} to {MAX_BIAS:g}, not {_shown(value)}"
        )
    return float(value)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}..."


_MAX_SHOWN = 40
