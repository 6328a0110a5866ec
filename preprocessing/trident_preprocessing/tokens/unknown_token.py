"""The token that stands for what a vocabulary cannot spell.

Owns where the tokenizers library keeps it. Never decides what is made of it.
"""

from __future__ import annotations

import json
from typing import Any


def unknown_id(backend: Any) -> int | None:
    """Return the id for what the vocabulary cannot spell; None where it can spell everything, or drops the rest.

    transformers may name another: GPT-2's is its end of text.

    Args:
        backend: of the tokenizers library.
    """
    if hasattr(backend.model, "unk_token"):
        token = backend.model.unk_token
        return None if token is None else backend.token_to_id(token)
    of_unigram: int | None = json.loads(backend.to_str())["model"].get("unk_id")
    return of_unigram
