"""Anchors: the tokens at which a token stream can be cut so that the rest decodes without what is before the cut.

Owns the reading of the decoder in `tokenizer.json`, the table of anchors that an engine folder carries, and the choice
of a context by this table, which serves whether special tokens are text or not. Never decodes a stream: `detokenizer`
does, by the same definitions.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from trident_ensemble.contract.errors import CheckpointError

#: The kinds of tokens in the table: a token without text; one at which a context may begin; one that spells only UTF-8
#: continuation bytes; and one that decides nothing, so that the context begins further back.
NOTHING = 0
ANCHOR = 1
CONTINUATION = 2
OPEN = 3
#: Added to the kind of a special token, which counts as NOTHING where special tokens are skipped.
SPECIAL = 4

#: After this many UTF-8 continuation bytes no character can be incomplete.
_MAX_CONTINUATIONS = 3
_LOCAL_STAGES = frozenset({"Replace", "ByteFallback", "Fuse", "Strip", "Metaspace"})
_BYTE_TOKENS = [f"<0x{byte:02X}>" for byte in range(256)]
#: Byte tokens as the library reads them; in Rust, +5 is a number too.
_BYTE_TOKEN = re.compile(r"<0x(?:[0-9A-Fa-f]{2}|\+[0-9A-Fa-f])>")


class TokenTable(Protocol):
    """The kind of every token id: an `anchor_table`, its `tobytes()`, which is faster, or what stands for these."""

    def __getitem__(self, token_id: int, /) -> int:
        """Return the kind of a token."""
        ...


class DecoderFamily(Enum):
    """A family of decoders, by what may still change the text of tokens that have been seen.

    BYTE_LEVEL: tokens spell bytes, so up to three bytes of an incomplete UTF-8 character may change.
    BYTE_FALLBACK: tokens are text, but unknown characters are spelled by tokens of one byte, <0xNN>, which may change
    in the same way.
    LOCAL: nothing changes; the text of a token depends on its neighbours only by a separator or a stripped space.
    """

    BYTE_LEVEL = "byte level"
    BYTE_FALLBACK = "byte fallback"
    LOCAL = "local"


def _byte_level_alphabet() -> dict[str, int]:
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + rank): byte for rank, byte in enumerate(others)}


#: GPT-2's mapping from characters to the bytes for which they stand.
BYTE_LEVEL_ALPHABET: Mapping[str, int] = _byte_level_alphabet()


def byte_level_bytes(token: str) -> bytes:
    """Return the bytes that a token of the BYTE_LEVEL family spells.

    A token with a character outside of the alphabet spells itself.
    """
    try:
        return bytes([BYTE_LEVEL_ALPHABET[character] for character in token])
    except KeyError:
        return token.encode()


def byte_of(token: str) -> int | None:
    """Return the byte that a token of the BYTE_FALLBACK family stands for; None if it is text."""
    return int(token[3:5], 16) if _BYTE_TOKEN.fullmatch(token) else None


def byte_tokens(spelled: bytes) -> list[str]:
    """Return the tokens of the BYTE_FALLBACK family that stand for these bytes."""
    return [_BYTE_TOKENS[byte] for byte in spelled]


def hidden_tokens(tokenizer: Tokenizer) -> frozenset[str]:
    """Return the special tokens, which decode to nothing where they are skipped."""
    return frozenset(token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special)


def decoder_family(tokenizer: Tokenizer) -> DecoderFamily:
    """Return the family of a tokenizer's decoder.

    Raises:
        CheckpointError: the output of the decoder cannot be streamed exactly; names the stage that prevents it.
    """
    stages = list(decoder_stages(json.loads(tokenizer.to_str())["decoder"]))
    kinds = [stage["type"] for stage in stages]
    if kinds in (["ByteLevel"], ["ByteLevel", "Fuse"]):
        return DecoderFamily.BYTE_LEVEL
    if kinds in (["WordPiece"], ["BPEDecoder"]):
        return DecoderFamily.LOCAL
    joined = False
    for index, stage in enumerate(stages):
        kind = stage["type"]
        known = kind in _LOCAL_STAGES and (not joined or _works_on_characters(stage))
        if not known or (kind == "ByteFallback" and not _keep_byte_tokens(stages[:index])):
            raise CheckpointError(
                f"tokenizer.json: decoder: stage {kind} of {' > '.join(kinds)} cannot be streamed exactly; known are"
                " ByteLevel, WordPiece or BPEDecoder alone, and Replace, Strip and Metaspace before ByteFallback and"
                " Fuse, which may change single characters behind them too"
            )
        joined = joined or kind in {"ByteFallback", "Fuse"}
    return DecoderFamily.BYTE_FALLBACK if "ByteFallback" in kinds else DecoderFamily.LOCAL


def decoder_stages(decoder: Mapping[str, Any] | None) -> Iterator[Mapping[str, Any]]:
    """Yield the stages of a `decoder` in tokenizer.json, in order, however deeply they are nested."""
    if decoder is None:
        return
    if decoder["type"] == "Sequence":
        for stage in decoder["decoders"]:
            yield from decoder_stages(stage)
    else:
        yield decoder


def _keep_byte_tokens(stages: list[Mapping[str, Any]]) -> bool:
    """Return whether these stages leave byte tokens unchanged."""
    model = {"type": "WordLevel", "vocab": {}, "unk_token": ""}
    decoder = {"type": "Sequence", "decoders": stages}
    raw = {"version": "1.0", "added_tokens": [], "model": model, "decoder": decoder}
    decode = Tokenizer.from_str(json.dumps(raw)).decoder.decode
    return all(decode([token, token]) == token * 2 for token in _BYTE_TOKENS)


def _works_on_characters(stage: Mapping[str, Any]) -> bool:
    """Return whether a stage treats joined text character by character."""
    if stage["type"] == "Replace":
        return len(stage["pattern"].get("String", "")) == 1
    if stage["type"] == "Strip":
        return bool(stage["stop"] == 0)
    return stage["type"] in {"Fuse", "Metaspace"}


def anchor_table(tokenizer_file: Path, vocab_size: int) -> npt.NDArray[np.uint8]:
    """Return the kind of every token id of an engine.

    Args:
        tokenizer_file: a `tokenizer.json`.
        vocab_size: width of the network's logits, which may be larger than the tokenizer's vocabulary.

    Returns:
        uint8 `[vocab_size]`: NOTHING, ANCHOR, CONTINUATION or OPEN, plus SPECIAL for a special token.

    Raises:
        CheckpointError: the file cannot be read, or its decoder cannot be streamed exactly.
    """
    try:
        tokenizer = Tokenizer.from_file(str(tokenizer_file))
    except Exception as error:  # the binding raises bare Exception
        raise CheckpointError(f"{tokenizer_file.name} cannot be read: {error}") from None
    special = hidden_tokens(tokenizer)
    family = decoder_family(tokenizer)
    open_bytes = _bytes_that_may_be_stripped(list(decoder_stages(json.loads(tokenizer.to_str())["decoder"])))
    table = np.zeros(vocab_size, np.uint8)
    for token_id in range(vocab_size):
        token = tokenizer.id_to_token(token_id)
        if token is None:
            continue
        if family is DecoderFamily.BYTE_LEVEL:
            kind = _kind_of_bytes(byte_level_bytes(token))
        elif family is DecoderFamily.BYTE_FALLBACK and (byte := byte_of(token)) is not None:
            kind = OPEN if byte in open_bytes else _kind_of_bytes(bytes([byte]))
        else:
            # A token that decodes to nothing by itself may leave a space to strip, so a context cannot begin at it.
            kind = ANCHOR if tokenizer.decode([token_id], skip_special_tokens=False) else OPEN
        table[token_id] = kind + (SPECIAL if token in special else 0)
    return table


def _kind_of_bytes(spelled: bytes) -> int:
    if not spelled:
        return NOTHING
    return ANCHOR if any(byte & 0xC0 != 0x80 for byte in spelled) else CONTINUATION


def _bytes_that_may_be_stripped(stages: list[Mapping[str, Any]]) -> frozenset[int]:
    """Return the bytes of characters that stages after ByteFallback only remove at the beginning of a text."""
    kinds = [stage["type"] for stage in stages]
    later = stages[kinds.index("ByteFallback") :] if "ByteFallback" in kinds else []
    characters = {stage["content"] for stage in later if stage["type"] == "Strip"}
    if characters:
        characters |= {stage["pattern"]["String"] for stage in later if stage["type"] == "Replace"}
    # Metaspace strips its character any number of times there, and any byte may be, or become, U+FFFD.
    if "\ufffd" in characters or any(stage["type"] == "Metaspace" for stage in later):
        return frozenset(range(256))
    return frozenset("".join(characters).encode())


def context_start(
    table: TokenTable,
    token_ids: Sequence[int],
    num_sent: int,
    *,
    skip_special_tokens: bool = True,
    begin: int = 0,
) -> int:
    """Return where the context of `token_ids[num_sent:]` begins; earlier tokens do not affect the text of these.

    Args:
        table: of `anchor_table`.
        token_ids: the output of a sequence so far.
        num_sent: how many of these tokens have been sent.
        skip_special_tokens: special tokens are not text. A context for True also serves for False, but is longer.
        begin: the index in `token_ids` where the stream begins; `num_sent` is an index of `token_ids` too.

    Returns:
        the index of the last anchor before `num_sent`, or of the third of three continuation tokens in a row, or
        `begin`.
    """
    num_continuations = 0
    for index in range(num_sent - 1, begin - 1, -1):
        kind = table[token_ids[index]]
        if kind >= SPECIAL:
            kind = kind_of(kind, skip_special_tokens=skip_special_tokens)
        if kind == ANCHOR:
            return index
        if kind == CONTINUATION:
            num_continuations += 1
            if num_continuations == _MAX_CONTINUATIONS:
                return index
    return begin


def context_ids(
    table: TokenTable, token_ids: Sequence[int], num_sent: int, *, skip_special_tokens: bool, begin: int = 0
) -> list[int]:
    """Return the ids before `token_ids[num_sent:]` that their decoding needs, without ids that are not text.

    The arguments are those of `context_start`.
    """
    start = context_start(table, token_ids, num_sent, skip_special_tokens=skip_special_tokens, begin=begin)
    if num_sent - start <= 1:
        # Mostly an anchor; a token that is not text does no harm.
        return list(token_ids[start:num_sent])
    return [
        token_id
        for token_id in token_ids[start:num_sent]
        if kind_of(table[token_id], skip_special_tokens=skip_special_tokens) != NOTHING
    ]


def kind_of(entry: int, *, skip_special_tokens: bool) -> int:
    """Return the kind of an entry of the table, given whether special tokens are skipped."""
    if entry < SPECIAL:
        return entry
    return NOTHING if skip_special_tokens else entry - SPECIAL
