"""Token ids to text, chunk by chunk, without state.

Owns what is emitted for a chunk, given the few tokens before it. The chunks of a stream, joined, are exactly
`tokenizers.Tokenizer.decode` of all its ids, with or without special tokens, however it was cut;
`trident_ensemble.anchors` says which context that takes. Stands on the ground floor because two need it: postprocessing
makes the text by it, and the core matches stop strings on the same text. Never keeps anything of a stream.

What may still change is held back until it is settled, or the last chunk comes: an incomplete UTF-8 character; and,
of a tokenizer with byte fallback, a whole run of byte tokens, because one invalid byte makes all of the run U+FFFD.
`clean_up_tokenization_spaces` of tokenizer_config.json is not applied: it rewrites text that has long been sent.
"""

from __future__ import annotations

from codecs import IncrementalDecoder, getincrementaldecoder
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from tokenizers import Tokenizer

from trident_ensemble import layout
from trident_ensemble.anchors import DecoderFamily, byte_level_bytes, decoder_family, hidden_tokens, is_byte_token
from trident_ensemble.errors import ArtifactError

TOKENIZER_FILE = "tokenizer.json"
_Utf8Decoder = getincrementaldecoder("utf-8")
_FIRST_SURROGATE = b"\xed\xa0"


class Detokenizer(Protocol):
    """Text of chunks."""

    def text(
        self, context_ids: Sequence[int], new_ids: Sequence[int], *, is_last: bool, skip_special_tokens: bool = True
    ) -> str:
        """What one chunk adds to its stream's text; how much a stream has emitted never depends on its cuts.

        Args:
            context_ids: the stream's ids before the chunk, from `anchors.context_start` on (or from further back).
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
        decoder = _Utf8Decoder("replace")
        _decode(decoder, b"".join([spelled[token_id] for token_id in context_ids]))
        text = _decode(decoder, b"".join([spelled[token_id] for token_id in new_ids]))
        return text + decoder.decode(b"", True) if is_last else text


def _decode(decoder: IncrementalDecoder, spelled: bytes) -> str:
    """All but an incomplete character; Python's decoder also keeps half of a surrogate, which never becomes one."""
    text = decoder.decode(spelled)
    pending = decoder.getstate()[0]
    if len(pending) == 2 and pending >= _FIRST_SURROGATE and pending[:1] == _FIRST_SURROGATE[:1]:
        text += decoder.decode(b"", True)
    return text


class _OpenTokens(dict[int, bool]):
    """Token id to whether the text before its end is still open: byte tokens, and tokens that decode to nothing."""

    def __init__(self, tokenizer: Tokenizer, family: DecoderFamily, hidden: frozenset[str]) -> None:
        super().__init__()
        self._tokenizer = tokenizer
        self._hidden = hidden
        self._has_byte_tokens = family is DecoderFamily.BYTE_FALLBACK

    def __missing__(self, token_id: int) -> bool:
        token: str | None = self._tokenizer.id_to_token(token_id)
        if token is None:
            return True
        is_open = token in self._hidden or (self._has_byte_tokens and is_byte_token(token))
        self[token_id] = is_open
        return is_open


class SplicingDetokenizer:
    """Of all other tokenizers: what context and chunk decode to together, less what the context alone did."""

    def __init__(self, tokenizer: Tokenizer, family: DecoderFamily) -> None:
        self._tokenizer = tokenizer
        self._open_without_special = _OpenTokens(tokenizer, family, hidden_tokens(tokenizer))
        self._open_with_special = _OpenTokens(tokenizer, family, frozenset())

    def text(
        self, context_ids: Sequence[int], new_ids: Sequence[int], *, is_last: bool, skip_special_tokens: bool = True
    ) -> str:
        """See `Detokenizer`."""
        is_open = self._open_without_special if skip_special_tokens else self._open_with_special
        num_settled = len(new_ids) if is_last else _num_settled(new_ids, is_open)
        if not num_settled and not is_last:
            return ""
        sent = self._decode(context_ids[: _num_settled(context_ids, is_open)], skip_special_tokens)
        return self._decode([*context_ids, *new_ids[:num_settled]], skip_special_tokens)[len(sent) :]

    def _decode(self, token_ids: Sequence[int], skip_special_tokens: bool) -> str:
        text: str = self._tokenizer.decode(token_ids, skip_special_tokens=skip_special_tokens)
        return text


def _num_settled(token_ids: Sequence[int], is_open: _OpenTokens) -> int:
    end = len(token_ids)
    while end and is_open[token_ids[end - 1]]:
        end -= 1
    return end


def make_detokenizer(tokenizer: Tokenizer) -> Detokenizer:
    """The detokenizer for a tokenizer's family.

    Raises:
        CheckpointError: its decoder cannot be streamed exactly.
    """
    family = decoder_family(tokenizer)
    if family is DecoderFamily.BYTE_LEVEL:
        return ByteLevelDetokenizer(tokenizer)
    return SplicingDetokenizer(tokenizer, family)


def load_detokenizer(engine_folder: Path) -> Detokenizer:
    """The detokenizer of an engine.

    Raises:
        ArtifactError: the engine folder has no readable tokenizer.
        CheckpointError: its decoder cannot be streamed exactly.
    """
    path = engine_folder / layout.TOKENIZER_FOLDER / TOKENIZER_FILE
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the binding raises bare Exception
        raise ArtifactError(f"{path} cannot be read: {error}; build again") from None
    return make_detokenizer(tokenizer)
