"""The bytes that single tokens add to a text.

Owns the bytes of a token by itself, for log probabilities and for the names of tokens: special tokens are spelled out,
and a token of a few bytes in the middle of a character has just these. Never decodes a stream: `detokenizer` does, and
joins the same bytes.
"""

from __future__ import annotations

from tokenizers import Tokenizer

from trident_ensemble.text.anchors import DecoderFamily, byte_level_bytes, byte_of, decoder_family, hidden_tokens
from trident_ensemble.text.detokenizer import make_detokenizer

#: Bytes from here on are parts of characters.
_FIRST_PARTIAL = 0x80


class TokenBytes:
    """The bytes of the tokens of one tokenizer. Any thread may use it.

    Where the text of a token depends on its neighbours, as it does with WordPiece, its bytes are what it adds after
    itself.

    Args:
        tokenizer: whose decoder can be streamed.

    Raises:
        CheckpointError: the output of the tokenizer's decoder cannot be streamed exactly.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._family = decoder_family(tokenizer)
        self._detokenizer = make_detokenizer(tokenizer)
        self._special = hidden_tokens(tokenizer)
        self._inside: dict[int, bytes] = {}
        self._at_begin: dict[int, bytes] = {}

    def of(self, token_id: int, *, begins: bool) -> bytes:
        """Return the bytes of a token; none if the tokenizer does not know it.

        Args:
            token_id: not negative.
            begins: no text comes before it; some tokenizers leave a space out there.
        """
        known = self._at_begin if begins else self._inside
        spelled = known.get(token_id)
        if spelled is None:
            token: str | None = self._tokenizer.id_to_token(token_id)
            if token is None:
                return b""  # not kept, because any number of ids may be asked for
            known[token_id] = spelled = self._spell(token_id, token, begins=begins)
        return spelled

    def is_special(self, token_id: int) -> bool:
        """Return whether a token is no text where special tokens are left out."""
        return self._tokenizer.id_to_token(token_id) in self._special

    def _spell(self, token_id: int, token: str, *, begins: bool) -> bytes:
        if self._family is DecoderFamily.BYTE_LEVEL:
            return byte_level_bytes(token)
        byte = byte_of(token) if self._family is DecoderFamily.BYTE_FALLBACK else None
        if byte is not None and byte >= _FIRST_PARTIAL:
            return bytes([byte])
        context = () if begins else (token_id,)
        text = self._detokenizer.text(context, (token_id,), is_last=True, skip_special_tokens=False)
        return text.encode()
