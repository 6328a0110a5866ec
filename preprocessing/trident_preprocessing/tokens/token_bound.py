"""A lower bound on the tokens of a text, from its beginning alone.

Owns the bound and its proof, for tokenizers that cut a text into words before they look at the vocabulary. No token
spans two words, and where the words of a beginning end depends on a few characters after them at most. So the tokens
of all words but the last ones of a beginning are tokens of the whole text, and as many as those the text has at least.
"""

from __future__ import annotations

from typing import Any


def has_more_tokens(backend: Any, text: str, num_tokens: int) -> bool:
    """Return whether a text has certainly more than so many tokens; False where it is not certain.

    Looks at as little of the text as it can: at about twice as many tokens, where a text has more.

    Args:
        backend: of the tokenizers library.
        text: as it would be tokenized.
        num_tokens: the bound.
    """
    size = max(_LEAST_SIZE, num_tokens * _CHARACTERS)
    # Beyond the half of it, the whole text is tokenized in less time.
    while size < len(text) // 2:
        num_settled = _num_settled(backend, text[:size])
        if num_settled > num_tokens:
            return True
        if not num_settled:
            return False
        size *= 4
    return False


def _num_settled(backend: Any, beginning: str) -> int:
    """Return how many tokens of a beginning are tokens of any text that begins so; 0 where that cannot be told."""
    # Of one text too, only a batch lets other threads run.
    encoding = backend.encode_batch([beginning], add_special_tokens=False)[0]
    word = encoding.token_to_word(len(encoding) - 1) if len(encoding) else None
    if word is None or word < _LAST_WORDS:
        return 0
    tokens = encoding.word_to_tokens(word - _LAST_WORDS)
    if tokens is None:
        return 0
    border = len(beginning) - _LAST_CHARACTERS
    num_settled: int = tokens[0]
    while num_settled and encoding.token_to_chars(num_settled - 1)[1] > border:
        num_settled -= 1
    return num_settled


#: Of a beginning, that each token is taken to have; tokens of ordinary text have 3 or 4.
_CHARACTERS = 8
_LEAST_SIZE = 1 << 14
#: What is left out of account at the end of a beginning: more than any expression looks ahead, or any token has.
_LAST_WORDS = 8
_LAST_CHARACTERS = 1024
