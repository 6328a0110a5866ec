"""The names by which the compiler and the host of OpenVINO networks know inputs and outputs.

Owns those names, so that both sides agree. Never runs or builds anything.
"""

from __future__ import annotations

TOKEN_IDS, POSITION_IDS = "token_ids", "position_ids"
LOGIT_ROWS = "logit_rows"
LOGITS = "logits"
#: The inputs that attention alone needs: vectors of int32, and one number.
ATTENTION_VECTORS = ("past_lens", "subsequence_begins", "block_indices", "block_indices_begins")
MAX_CONTEXT_LEN = "max_context_len"
#: The vectors of int32 that a network is given, each a field of `StepBatch`.
STEP_VECTORS = (TOKEN_IDS, POSITION_IDS, *ATTENTION_VECTORS, LOGIT_ROWS)
#: What is left of an attention in a file: results of the first three, and an input that stands for its output.
QUERY, KEY, VALUE, ATTENTION_OUTPUT = "query", "key", "value", "attended"
_KEY_CACHE, _VALUE_CACHE = "key_cache.", "value_cache."


def caches(layer: int) -> tuple[str, str]:
    """Return the names of a layer's caches, of keys and of values."""
    return f"{_KEY_CACHE}{layer}", f"{_VALUE_CACHE}{layer}"


def is_cache(name: str) -> bool:
    """Return whether an input is a cache."""
    return name.startswith((_KEY_CACHE, _VALUE_CACHE))


def is_value_cache(name: str) -> bool:
    """Return whether an input is a cache of values."""
    return name.startswith(_VALUE_CACHE)
