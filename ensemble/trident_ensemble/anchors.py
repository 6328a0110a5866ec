"""Which tokens cut a token stream so that the text after the cut decodes without what lies before it.

Owns the reading of `tokenizer.json`'s decoder, the table of anchors that an engine folder carries, and the choice of
context by it; both hold whether special tokens are text or not. Never decodes a stream itself; that is
`detokenizer`'s part, by the same definitions.

The families of decoders, by what may still change the text of tokens already seen:

    BYTE_LEVEL     tokens spell bytes: up to three bytes of an incomplete UTF-8 character
    BYTE_FALLBACK  tokens are text, unknown characters are runs of <0xNN>: a run is valid or invalid as a whole
    LOCAL          nothing: each token's text depends on its neighbours only by a separator or a stripped space
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from trident_ensemble.errors import CheckpointError

#: A kind of token in the table. Of the rest (0) nothing follows: what they need lies further back.
ANCHOR = 1
CONTINUATION = 2

#: After so many UTF-8 continuation bytes no character can be incomplete any more.
_MAX_CONTINUATIONS = 3
_LOCAL_STAGES = frozenset({"Replace", "ByteFallback", "Fuse", "Strip", "Metaspace"})
#: As the library reads them: in Rust, +5 is a number too.
_BYTE_TOKEN = re.compile(r"<0x(?:[0-9A-Fa-f]{2}|\+[0-9A-Fa-f])>")


class DecoderFamily(Enum):
    """See the module."""

    BYTE_LEVEL = "byte level"
    BYTE_FALLBACK = "byte fallback"
    LOCAL = "local"


def _byte_level_alphabet() -> dict[str, int]:
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + rank): byte for rank, byte in enumerate(others)}


#: GPT-2's mapping of characters to the bytes they stand for.
BYTE_LEVEL_ALPHABET: Mapping[str, int] = _byte_level_alphabet()


def byte_level_bytes(token: str) -> bytes:
    """The bytes a token of the BYTE_LEVEL family spells; one with a character outside of the alphabet spells itself."""
    try:
        return bytes([BYTE_LEVEL_ALPHABET[character] for character in token])
    except KeyError:
        return token.encode()


def is_byte_token(token: str) -> bool:
    """Whether a token of the BYTE_FALLBACK family stands for one byte."""
    return _BYTE_TOKEN.fullmatch(token) is not None


def hidden_tokens(tokenizer: Tokenizer) -> frozenset[str]:
    """The special tokens, which decode to nothing where they are skipped."""
    return frozenset(token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special)


def decoder_family(tokenizer: Tokenizer) -> DecoderFamily:
    """How much of a stream's text may still change.

    Raises:
        CheckpointError: the decoder is none of those whose output can be streamed exactly; names its stage.
    """
    stages = list(decoder_stages(json.loads(tokenizer.to_str())["decoder"]))
    kinds = [stage["type"] for stage in stages]
    if kinds in (["ByteLevel"], ["ByteLevel", "Fuse"]):
        return DecoderFamily.BYTE_LEVEL
    if kinds in (["WordPiece"], ["BPEDecoder"]):
        return DecoderFamily.LOCAL
    fused = False
    for stage in stages:
        kind = stage["type"]
        if kind not in _LOCAL_STAGES or (fused and not _works_on_characters(stage)):
            raise CheckpointError(
                f"tokenizer.json: decoder: stage {kind} of {' > '.join(kinds)} cannot be streamed exactly; known are"
                " ByteLevel, WordPiece or BPEDecoder alone, and Replace, ByteFallback, Strip and Metaspace before Fuse"
            )
        fused = fused or kind == "Fuse"
    return DecoderFamily.BYTE_FALLBACK if "ByteFallback" in kinds else DecoderFamily.LOCAL


def decoder_stages(decoder: Mapping[str, Any] | None) -> Iterator[Mapping[str, Any]]:
    """The stages of a `decoder` of tokenizer.json, in order, however deep they are nested."""
    if decoder is None:
        return
    if decoder["type"] == "Sequence":
        for stage in decoder["decoders"]:
            yield from decoder_stages(stage)
    else:
        yield decoder


def _works_on_characters(stage: Mapping[str, Any]) -> bool:
    """Whether a stage that is given the whole text as one string still treats it character by character."""
    if stage["type"] == "Replace":
        return len(stage["pattern"].get("String", "")) == 1
    if stage["type"] == "Strip":
        return bool(stage["stop"] == 0)
    return stage["type"] in {"Fuse", "Metaspace"}


def anchor_table(tokenizer_file: Path, vocab_size: int) -> npt.NDArray[np.uint8]:
    """The kind of every token id of an engine.

    Args:
        tokenizer_file: a `tokenizer.json`.
        vocab_size: the network's, which may be larger than the tokenizer's.

    Returns:
        uint8 `[vocab_size]`: ANCHOR, CONTINUATION or 0.

    Raises:
        CheckpointError: the file cannot be read, or its decoder cannot be streamed exactly.
    """
    try:
        tokenizer = Tokenizer.from_file(str(tokenizer_file))
    except Exception as error:  # the binding raises bare Exception
        raise CheckpointError(f"{tokenizer_file.name} cannot be read: {error}") from None
    family = decoder_family(tokenizer)
    hidden = hidden_tokens(tokenizer)
    table = np.zeros(vocab_size, np.uint8)
    for token_id in range(vocab_size):
        token = tokenizer.id_to_token(token_id)
        if not token or token in hidden:
            continue
        if family is DecoderFamily.BYTE_LEVEL:
            starts = any(byte & 0xC0 != 0x80 for byte in byte_level_bytes(token))
            table[token_id] = ANCHOR if starts else CONTINUATION
        elif family is DecoderFamily.LOCAL or not is_byte_token(token):
            # A token that alone is nothing may leave a space to strip, so the cut cannot be at it.
            table[token_id] = ANCHOR if tokenizer.decode([token_id]) else 0
    return table


def context_start(table: bytes | npt.NDArray[np.uint8], token_ids: list[int], num_sent: int) -> int:
    """Where the context of `token_ids[num_sent:]` begins: tokens before it change nothing in what is still to be sent.

    Args:
        table: of `anchor_table`; its `tobytes()` is faster to index.
        token_ids: a stream's output so far.
        num_sent: how many of them have left.

    Returns:
        the place of the last anchor before `num_sent`, or of the third of three continuation tokens in a row, or 0.
    """
    num_continuations = 0
    for place in range(num_sent - 1, -1, -1):
        kind = table[token_ids[place]]
        if kind == ANCHOR:
            return place
        if kind == CONTINUATION:
            num_continuations += 1
            if num_continuations == _MAX_CONTINUATIONS:
                return place
    return 0
