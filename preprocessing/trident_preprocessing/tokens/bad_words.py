"""Texts that must not be generated, as sequences of token ids.

Owns which sequences stand for a text: those that the tokenizer has for it at the beginning of a word and inside one.
Never knows what they are compared with; that is the core's part. A text that is spelled by other tokens than these,
which a model may do, is not caught.
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
from trident_preprocessing.tokens.unknown_token import unknown_id

FIELD = tensors.BAD_WORDS.name
MAX_BAD_WORDS = 256
MAX_BAD_WORD_BYTES = 256
_TOO_LARGE = "one bad word may have"
#: What a text stands behind while its tokens are looked at: the end of a line, a letter, a digit. Tokenizers that put
#: a space before the first word, and those that mark what goes on with a word, have other tokens there; where a
#: token spans the border, the next is tried.
_CONTEXTS = ("\n", "x", "0")
_FILL = -1

TokenIds = tuple[int, ...]


class BadWords:
    """Bad words of one tokenizer.

    Args:
        tokenizer: of transformers, around one of the tokenizers library.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._backend = tokenizer.backend_tokenizer
        self._backend.no_truncation()
        self._backend.no_padding()
        self._unknown_id = unknown_id(self._backend)
        self._unknown = None if self._unknown_id is None else self._backend.id_to_token(self._unknown_id)

    def token_ids(self, words: Sequence[bytes]) -> list[TokenIds]:
        """Each way in which the tokenizer spells one of the words, once.

        Args:
            words: UTF-8; empty ones are ignored.

        Raises:
            RequestError: too many, too large, or no texts.
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
        # The unknown token spells no text in particular, but its own: to ban it would ban whatever else it stands for.
        return list(
            dict.fromkeys(
                ids for text, ids in spellings if ids and (self._unknown_id not in ids or text.strip() == self._unknown)
            )
        )


def _leads(text: str) -> tuple[str, ...]:
    return ("",) if text[0].isspace() else ("", " ")


def _behind(border: int, encoding: Any) -> TokenIds:
    """The ids of what begins at this character; none if a token spans it."""
    ids, offsets = encoding.ids, encoding.offsets
    first = next((place for place, (start, _) in enumerate(offsets) if start >= border), len(ids))
    return tuple(ids[first:]) if all(end <= border for _, end in offsets[:first]) else ()


def pack_words(words: Iterable[TokenIds]) -> npt.NDArray[np.int32]:
    """Sequences of ids as one tensor [2, n], n at least 1: the ids after one another, and below where each ends.

    Both rows are filled up with -1; the format is tensorrtllm_backend's, of its bad_words_list.
    """
    rows = list(words)
    ids = list(chain.from_iterable(rows))
    packed = np.full((2, max(1, len(ids))), _FILL, np.int32)
    packed[0, : len(ids)] = ids
    packed[1, : len(rows)] = list(accumulate(map(len, rows)))
    return packed
