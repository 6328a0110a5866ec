"""The names by which the compiler and the host of TensorRT networks know inputs and outputs.

Owns those names and the profiles' numbers, so that both sides agree. Never runs or builds
anything.
"""

from __future__ import annotations

TOKEN_IDS, POSITION_IDS = "token_ids", "position_ids"
PAST_LENS, CONTEXT_LENS = "past_lens", "context_lens"
LOGIT_ROWS = "logit_rows"
#: The network's inputs beside the caches, in the order in which they lie in the upload.
INPUTS = (TOKEN_IDS, POSITION_IDS, PAST_LENS, CONTEXT_LENS, LOGIT_ROWS)
LOGITS = "logits"
#: Optimization profiles: many sequences of one token each, and one sequence of many.
DECODE_PROFILE, PREFILL_PROFILE = 0, 1


def caches(layer: int) -> tuple[str, str]:
    """Return the names of a layer's caches, of keys and of values."""
    return f"key_cache.{layer}", f"value_cache.{layer}"


def updated(cache: str) -> str:
    """Return the name of the output that is a cache after a step, in the same memory."""
    return f"new_{cache}"
