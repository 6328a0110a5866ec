"""The decoding of token ids into text, chunk by chunk and without state.

Owns the text of a chunk, given the few tokens before it. The texts of the chunks of a stream, joined, are the decoding
of all its ids, however the stream was cut; `text.anchors` says which context that takes. Both postprocessing, which
makes the text, and the core, which matches stop strings on the same text, use it. Never keeps anything of a stream.

The bytes of an incomplete UTF-8 character, at most three, are held back until the character is complete or the last
chunk comes. Everything else leaves at once.

The decoding is that of `tokenizers.Tokenizer.decode`, with one exception. The library turns a run of byte tokens
(<0xNN>) that is not valid UTF-8 into one U+FFFD for each byte, even for the valid characters in it, so that the last
byte of a run would decide about its first character. Here only invalid bytes become U+FFFD, as in Python's
`bytes.decode(errors="replace")` and as for tokenizers whose tokens all spell bytes.

`clean_up_tokenization_spaces` in tokenizer_config.json is not applied, because it rewrites text that has been sent.
"""

from __future__ import annotations

from codecs import utf_8_decode
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Protocol

from tokenizers import Tokenizer

from trident_ensemble.contract import layout
from trident_ensemble.contract.errors import ArtifactError
from trident_ensemble.text.anchors import (
    DecoderFamily,
    byte_level_bytes,
    byte_of,
    byte_tokens,
    decoder_family,
    hidden_tokens,
)

_FIRST_SURROGATE = b"\xed\xa0"
#: Contexts of at most this many tokens, which nearly all are, recur; this many of their lengths are kept.
_MAX_RECENT = 4
_NUM_RECENT = 1 << 12


class Detokenizer(Protocol):
    """Decodes the chunks of streams."""

    def text(
        self, context_ids: Sequence[int], new_ids: Sequence[int], *, is_last: bool, skip_special_tokens: bool = True
    ) -> str:
        """Return the text that one chunk adds to its stream, whose whole text never depends on how it is cut.

        Args:
            context_ids: what `anchors.context_ids` gives of the stream's ids before the chunk, or more of them.
            new_ids: the ids of the chunk, none of them negative; ids unknown to the tokenizer decode to nothing.
            is_last: no further chunk follows, so nothing is held back.
            skip_special_tokens: special tokens are not text; the same for all chunks of a stream.
        """
        ...


class _TokenBytes(dict[int, bytes]):
    """The bytes that each token id adds to the text, looked up once."""

    def __init__(self, tokenizer: Tokenizer, hidden: frozenset[str]) -> None:
        super().__init__()
        self._tokenizer = tokenizer
        self._hidden = hidden

    def __missing__(self, token_id: int) -> bytes:
        token: str | None = self._tokenizer.id_to_token(token_id)
        if token is None:
            return b""  # not kept, because any number of ids may be asked for
        spelled = b"" if token in self._hidden else byte_level_bytes(token)
        self[token_id] = spelled
        return spelled


class ByteLevelDetokenizer:
    """The detokenizer for tokenizers whose tokens spell bytes.

    It is an incremental UTF-8 decoder whose state comes from the context.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._without_special = _TokenBytes(tokenizer, hidden_tokens(tokenizer))
        self._with_special = _TokenBytes(tokenizer, frozenset())

    def text(
        self, context_ids: Sequence[int], new_ids: Sequence[int], *, is_last: bool, skip_special_tokens: bool = True
    ) -> str:
        """Return the text that one chunk adds to its stream."""
        spelled = self._without_special if skip_special_tokens else self._with_special
        _, pending = _decode(b"".join([spelled[token_id] for token_id in context_ids]))
        return _decode(pending + b"".join([spelled[token_id] for token_id in new_ids]), is_last=is_last)[0]


def _decode(spelled: bytes, *, is_last: bool = False) -> tuple[str, bytes]:
    """Decode bytes; return their text and the incomplete character at their end, which only the last bytes lack."""
    text, num_decoded = utf_8_decode(spelled, "replace", is_last)
    pending = spelled[num_decoded:]
    if len(pending) == 2 and pending >= _FIRST_SURROGATE and pending[:1] == _FIRST_SURROGATE[:1]:
        # Python holds back half of a surrogate, which never becomes a character.
        return text + utf_8_decode(pending, "replace", True)[0], b""
    return text, pending


class _Pieces(dict[int, str | bytes | None]):
    """The input of the decoder for each token id: the token, the byte for which it stands, or None for nothing."""

    def __init__(self, tokenizer: Tokenizer, hidden: frozenset[str]) -> None:
        super().__init__()
        self._tokenizer = tokenizer
        self._hidden = hidden

    def __missing__(self, token_id: int) -> str | bytes | None:
        token: str | None = self._tokenizer.id_to_token(token_id)
        if token is None:
            return None  # not kept, because any number of ids may be asked for
        byte = byte_of(token)
        self[token_id] = piece = None if token in self._hidden else token if byte is None else bytes([byte])
        return piece


class ByteFallbackDetokenizer:
    """The detokenizer for tokenizers that spell unknown characters in byte tokens.

    It gives the library's decoder nothing but valid UTF-8.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._decoder = tokenizer.decoder
        self._without_special = _Pieces(tokenizer, hidden_tokens(tokenizer))
        self._with_special = _Pieces(tokenizer, frozenset())
        self._recent_length = lru_cache(_NUM_RECENT)(self._length)

    def text(
        self, context_ids: Sequence[int], new_ids: Sequence[int], *, is_last: bool, skip_special_tokens: bool = True
    ) -> str:
        """Return the text that one chunk adds to its stream."""
        pieces = self._without_special if skip_special_tokens else self._with_special
        tokens, run = _spell(pieces, context_ids, [], b"")
        sent = [*tokens, *_spell_bytes(run, is_last=False)] if run else tokens
        tokens, run = _spell(pieces, new_ids, tokens.copy(), run)
        if run:
            tokens += _spell_bytes(run, is_last=is_last)
        if tokens == sent:
            return ""
        text: str = self._decoder.decode(tokens)
        if not sent:
            return text
        return text[self._recent_length(*sent) if len(sent) <= _MAX_RECENT else self._length(*sent) :]

    def _length(self, *tokens: str) -> int:
        return len(self._decoder.decode(list(tokens)))


def _spell(
    pieces: Mapping[int, str | bytes | None], token_ids: Sequence[int], tokens: list[str], run: bytes
) -> tuple[list[str], bytes]:
    """Append the pieces of ids to tokens and to a run of bytes; return both. A run that ends becomes tokens."""
    for token_id in token_ids:
        piece = pieces[token_id]
        if isinstance(piece, bytes):
            run += piece
        elif piece is not None:
            if run:
                tokens += _spell_bytes(run, is_last=True)
                run = b""
            tokens.append(piece)
    return tokens, run


def _spell_bytes(run: bytes, *, is_last: bool) -> list[str]:
    """Return byte tokens for the text of a run of bytes, which the library then decodes unchanged."""
    return byte_tokens(_decode(run, is_last=is_last)[0].encode())


class SplicingDetokenizer:
    """The detokenizer for all other tokenizers: it decodes context and chunk together, and cuts off the context."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def text(
        self,
        context_ids: Sequence[int],
        new_ids: Sequence[int],
        *,
        is_last: bool,  # noqa: ARG002 (nothing is ever held back)
        skip_special_tokens: bool = True,
    ) -> str:
        """Return the text that one chunk adds to its stream."""
        if not new_ids:
            return ""
        sent = self._decode(context_ids, skip_special_tokens)
        return self._decode([*context_ids, *new_ids], skip_special_tokens)[len(sent) :]

    def _decode(self, token_ids: Sequence[int], skip_special_tokens: bool) -> str:
        text: str = self._tokenizer.decode(token_ids, skip_special_tokens=skip_special_tokens)
        return text


def make_detokenizer(tokenizer: Tokenizer) -> Detokenizer:
    """Return the detokenizer for a tokenizer.

    Raises:
        CheckpointError: the output of the tokenizer's decoder cannot be streamed exactly.
    """
    family = decoder_family(tokenizer)
    if family is DecoderFamily.BYTE_LEVEL:
        return ByteLevelDetokenizer(tokenizer)
    return (
        ByteFallbackDetokenizer(tokenizer) if family is DecoderFamily.BYTE_FALLBACK else SplicingDetokenizer(tokenizer)
    )


def load_detokenizer(engine_folder: Path) -> Detokenizer:
    """Return the detokenizer of an engine.

    Raises:
        ArtifactError: the engine folder has no readable tokenizer.
        CheckpointError: its decoder cannot be streamed exactly.
    """
    return make_detokenizer(load_tokenizer(engine_folder))


def load_tokenizer(engine_folder: Path) -> Tokenizer:
    """Return the tokenizer of an engine, for decoding.

    Raises:
        ArtifactError: the engine folder has no readable tokenizer.
    """
    path = engine_folder / layout.TOKENIZER_FOLDER / layout.TOKENIZER_FILE
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the binding raises bare Exception
        raise ArtifactError(f"{path} cannot be read: {error}; build again") from None
