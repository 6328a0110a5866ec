"""Bad words, which must not be generated, as sequences of token ids.

Owns which sequences stand for a word: those that the tokenizer makes of it at the beginning of a word and inside one. A
model may spell the word by other tokens, which is not caught. Never bans a token; the core does that.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import accumulate, chain
from typing import Any

import numpy as np
import numpy.typing as npt

from trident_ensemble.contract import tensors
from trident_ensemble.contract.client_input import decode_text
from trident_ensemble.contract.errors import RequestError
from trident_preprocessing.tokens.checkpoint_tokenizer import unknown_id

FIELD = tensors.BAD_WORDS.name
MAX_BAD_WORDS = 256
MAX_BAD_WORD_BYTES = 256
_TOO_LARGE = "one bad word may have"
#: What a word is tokenized after: the end of a line, a letter, a digit. Tokenizers that put a space before the first
#: word, and those that mark the continuation of a word, have other tokens there. Where a token spans the border, the
#: next context is tried.
_CONTEXTS = ("\n", "x", "0")
_FILL = -1

TokenIds = tuple[int, ...]


class BadWords:
    """Finds how one tokenizer spells bad words.

    Args:
        tokenizer: a tokenizer of transformers around one of the tokenizers library.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._backend = tokenizer.backend_tokenizer
        self._backend.no_truncation()
        self._backend.no_padding()
        self._unknown_id = unknown_id(self._backend)
        self._unknown = None if self._unknown_id is None else self._backend.id_to_token(self._unknown_id)

    def token_ids(self, words: Sequence[bytes]) -> list[TokenIds]:
        """Return each way in which the tokenizer spells one of the words, once.

        Args:
            words: UTF-8 texts; empty ones are ignored.

        Raises:
            RequestError: there are too many words, or one is too large or is not valid text.
        """
        if len(words) > MAX_BAD_WORDS:
            raise RequestError(FIELD, f"{len(words)} are too many; at most {MAX_BAD_WORDS}")
        texts = [decode_text(FIELD, word, MAX_BAD_WORD_BYTES, _TOO_LARGE) for word in words if word]
        if any("\0" in text for text in texts):
            raise RequestError(FIELD, "a text cannot have the character U+0000")
        placed = [(context, lead + text) for text in texts for lead in _leads(text) for context in ("", *_CONTEXTS)]
        if not placed:
            return []
        encodings = self._backend.encode_batch([context + text for context, text in placed], add_special_tokens=False)
        spellings = (
            (text, _behind(len(context), encoding)) for (context, text), encoding in zip(placed, encodings, strict=True)
        )
        # The unknown token stands for many texts, so it is only banned where the word is its own spelling.
        return list(
            dict.fromkeys(
                ids for text, ids in spellings if ids and (self._unknown_id not in ids or text.strip() == self._unknown)
            )
        )


def _leads(text: str) -> tuple[str, ...]:
    return ("",) if text[0].isspace() else ("", " ")


def _behind(border: int, encoding: Any) -> TokenIds:
    """Return the ids of the tokens from this character on; none if a token spans it."""
    ids, offsets = encoding.ids, encoding.offsets
    first = next((index for index, (start, _) in enumerate(offsets) if start >= border), len(ids))
    return tuple(ids[first:]) if all(end <= border for _, end in offsets[:first]) else ()


def pack_words(words: Iterable[TokenIds]) -> npt.NDArray[np.int32]:
    """Pack sequences of ids into an int32 tensor `[2, n]` with n of at least 1.

    The first row holds the ids of all words, the second says where each word ends; both are padded with -1. The format
    is that of tensorrtllm_backend's bad_words_list.
    """
    rows = list(words)
    ids = list(chain.from_iterable(rows))
    packed = np.full((2, max(1, len(ids))), _FILL, np.int32)
    packed[0, : len(ids)] = ids
    packed[1, : len(rows)] = list(accumulate(map(len, rows)))
    return packed
