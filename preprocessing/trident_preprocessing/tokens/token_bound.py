"""A lower bound on the number of tokens of a text, from its beginning alone.

Owns the bound and its proof, for tokenizers that cut a text into words before they look at the vocabulary. No token
spans two words, and where a word ends depends on at most a few characters after it. So the tokens of all words of a
beginning but the last ones are tokens of the whole text, which therefore has at least that many. Never refuses a text.
"""

from __future__ import annotations

from typing import Any


def has_more_tokens(backend: Any, text: str, num_tokens: int) -> bool:
    """Return whether a text certainly has more than `num_tokens` tokens; False where that is not certain.

    As little of the text as possible is tokenized: about twice `num_tokens` tokens of a text that has more.

    Args:
        backend: a tokenizer of the tokenizers library.
        text: the text as it would be tokenized.
        num_tokens: the bound.
    """
    size = max(_LEAST_SIZE, num_tokens * _CHARACTERS)
    # Beyond half of the text, tokenizing all of it takes less time.
    while size < len(text) // 2:
        num_settled = _num_settled(backend, text[:size])
        if num_settled > num_tokens:
            return True
        if not num_settled:
            return False
        size *= 4
    return False


def _num_settled(backend: Any, beginning: str) -> int:
    """Return how many tokens of a beginning belong to any text that begins so; 0 where that cannot be told."""
    # Only a batch, even of one text, lets other threads run.
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


#: Characters that a token is assumed to have when a beginning is cut; tokens of ordinary text have 3 or 4.
_CHARACTERS = 8
_LEAST_SIZE = 1 << 14
#: The end of a beginning that is not counted: more than any expression looks ahead, and than any token has.
_LAST_WORDS = 8
_LAST_CHARACTERS = 1024
