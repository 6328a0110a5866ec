"""Token ids to text, chunk by chunk, without state.

Owns what is emitted for a chunk, given the few tokens before it. The chunks of a stream, joined, are the decoding of
all its ids, however it was cut; `text.anchors` says which context that takes. Stands on the ground floor
because two need it: postprocessing makes the text by it, and the core matches stop strings on the same text. Never
keeps anything of a stream.

What may still change is held back until it is settled, or the last chunk comes: the bytes of an incomplete UTF-8
character, three at most. All else leaves at once.

The decoding is that of `tokenizers.Tokenizer.decode`, with one exception. Of a run of byte tokens (<0xNN>) that is not
valid UTF-8 the library makes one U+FFFD a byte, however many valid characters the run has, so that its last byte would
decide on its first character. Here only what is invalid becomes U+FFFD, as in Python's `bytes.decode(errors="replace")`
and as tokenizers that spell bytes throughout have always had it.

`clean_up_tokenization_spaces` of tokenizer_config.json is not applied: it rewrites text that has long been sent.
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
#: Contexts of so many tokens, as nearly all are, recur; the lengths of so many of them are kept.
_MAX_RECENT = 4
_NUM_RECENT = 1 << 12


class Detokenizer(Protocol):
    """Text of chunks."""

    def text(
        self, context_ids: Sequence[int], new_ids: Sequence[int], *, is_last: bool, skip_special_tokens: bool = True
    ) -> str:
        """Return what one chunk adds to its stream's text; what a stream has emitted never depends on its cuts.

        Args:
            context_ids: of the stream's ids before the chunk, `anchors.context_ids` (or more of them).
            new_ids: the chunk's ids, none negative; ids that the tokenizer does not have decode to nothing.
            is_last: no further chunk comes, so nothing is held back.
            skip_special_tokens: special tokens are no text; the same for all of a stream.
        """
        ...


class _TokenBytes(dict[int, bytes]):
    """Token id to the bytes it adds to the text, looked up once."""

    def __init__(self, tokenizer: Tokenizer, hidden: frozenset[str]) -> None:
        super().__init__()
        self._tokenizer = tokenizer
        self._hidden = hidden

    def __missing__(self, token_id: int) -> bytes:
        token: str | None = self._tokenizer.id_to_token(token_id)
        if token is None:
            return b""  # not kept: any number of ids may be asked for
        spelled = b"" if token in self._hidden else byte_level_bytes(token)
        self[token_id] = spelled
        return spelled


class ByteLevelDetokenizer:
    """Of tokenizers whose tokens spell bytes: an incremental UTF-8 decoder, brought into its state by the context."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._without_special = _TokenBytes(tokenizer, hidden_tokens(tokenizer))
        self._with_special = _TokenBytes(tokenizer, frozenset())

    def text(
        self, context_ids: Sequence[int], new_ids: Sequence[int], *, is_last: bool, skip_special_tokens: bool = True
    ) -> str:
        """See `Detokenizer`."""
        spelled = self._without_special if skip_special_tokens else self._with_special
        _, pending = _decode(b"".join([spelled[token_id] for token_id in context_ids]))
        return _decode(pending + b"".join([spelled[token_id] for token_id in new_ids]), is_last=is_last)[0]


def _decode(spelled: bytes, *, is_last: bool = False) -> tuple[str, bytes]:
    """The text of bytes, and the incomplete character at their end, which is text only if they are the last."""
    text, num_decoded = utf_8_decode(spelled, "replace", is_last)
    pending = spelled[num_decoded:]
    if len(pending) == 2 and pending >= _FIRST_SURROGATE and pending[:1] == _FIRST_SURROGATE[:1]:
        # Python keeps half of a surrogate, which never becomes a character.
        return text + utf_8_decode(pending, "replace", True)[0], b""
    return text, pending


class _Pieces(dict[int, str | bytes | None]):
    """Token id to what the decoder is given for it: a token, the byte that it stands for, or None for nothing."""

    def __init__(self, tokenizer: Tokenizer, hidden: frozenset[str]) -> None:
        super().__init__()
        self._tokenizer = tokenizer
        self._hidden = hidden

    def __missing__(self, token_id: int) -> str | bytes | None:
        token: str | None = self._tokenizer.id_to_token(token_id)
        if token is None:
            return None  # not kept: any number of ids may be asked for
        byte = byte_of(token)
        self[token_id] = piece = None if token in self._hidden else token if byte is None else bytes([byte])
        return piece


class ByteFallbackDetokenizer:
    """Of tokenizers that spell unknown characters in byte tokens: the library's decoder, given only valid UTF-8."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._decoder = tokenizer.decoder
        self._without_special = _Pieces(tokenizer, hidden_tokens(tokenizer))
        self._with_special = _Pieces(tokenizer, frozenset())
        self._recent_length = lru_cache(_NUM_RECENT)(self._length)

    def text(
        self, context_ids: Sequence[int], new_ids: Sequence[int], *, is_last: bool, skip_special_tokens: bool = True
    ) -> str:
        """See `Detokenizer`."""
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
    """Put the pieces of ids behind tokens and a run of bytes; of a run that has ended, what becomes of it."""
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
    """Byte tokens for what becomes of a run of bytes, which the library then decodes as it is."""
    return byte_tokens(_decode(run, is_last=is_last)[0].encode())


class SplicingDetokenizer:
    """Of all other tokenizers: what context and chunk decode to together, less what the context alone did."""

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
        """See `Detokenizer`."""
        if not new_ids:
            return ""
        sent = self._decode(context_ids, skip_special_tokens)
        return self._decode([*context_ids, *new_ids], skip_special_tokens)[len(sent) :]

    def _decode(self, token_ids: Sequence[int], skip_special_tokens: bool) -> str:
        text: str = self._tokenizer.decode(token_ids, skip_special_tokens=skip_special_tokens)
        return text


def make_detokenizer(tokenizer: Tokenizer) -> Detokenizer:
    """The detokenizer for a tokenizer's family.

    Raises:
        CheckpointError: its decoder cannot be streamed exactly.
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
