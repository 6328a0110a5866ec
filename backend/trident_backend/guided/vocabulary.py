"""The bytes that each token adds to the text, in which grammars are followed.

Owns the reading of these bytes from a tokenizer, llguidance's view of them, and the refusal of tokenizers whose tokens
have no bytes of their own. A token that decodes to nothing (a special token, or an id that only the network has) has an
empty text. Never allows such a token, unless a grammar asks for it by its id.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper
from tokenizers import Tokenizer

from trident_backend.guided.added_tokens import AddedTokens
from trident_ensemble.contract.errors import CheckpointError
from trident_ensemble.text.anchors import (
    DecoderFamily,
    byte_level_bytes,
    byte_of,
    decoder_family,
    decoder_stages,
    hidden_tokens,
)


@dataclass(frozen=True)
class Vocabulary:
    """The texts of all tokens, the texts that tokens have only at the beginning of an output, and the added tokens.

    Args:
        size: V, the width of the network's logits.
        texts: first the texts of the V tokens in the middle of an output; then an empty text, whose index marks the
            end; then the texts that tokens have only at the beginning (a space is stripped there) and that no other
            token has; then, for each added token, a text by which llguidance knows it as a marker.
        first_ids: int `[V]`, the index in `texts` of each token's text at the beginning, or -1 if that is empty; None
            if no token differs there.
        marker_tokens: the index in `texts` of each added token's marker -> its token id.
        added: the added tokens by their texts, with the same indices.
    """

    size: int
    texts: list[bytes]
    first_ids: npt.NDArray[np.intp] | None
    marker_tokens: Mapping[int, int] = field(default_factory=dict)
    added: AddedTokens = field(default_factory=AddedTokens)

    @cached_property
    def spells_all(self) -> bool:
        """Whether every text can be spelled byte by byte."""
        known = {text[0] for text in self.texts[: self.size] if len(text) == 1}
        return known >= {*range(0xC0), *range(0xC2, 0xF5)}

    @property
    def end_id(self) -> int:
        """The index in `texts` that marks the end."""
        return self.size


class TokenizerInfo:
    """A vocabulary as llguidance sees it.

    Args:
        vocabulary: the texts of the engine's tokens.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        self._tokenizer = LLTokenizer(cast(TokenizerWrapper, _Texts(vocabulary)))

    def matcher(self, grammar: str, max_items: int, max_states: int) -> LLMatcher:
        """Return a new matcher at the beginning of a grammar; it shares nothing, and may be in an error state.

        Args:
            grammar: the grammar in llguidance's language.
            max_items: items of the parser's table that one mask may take.
            max_states: states that the lexer's automaton may have.
        """
        limits = LLParserLimits(max_lexer_states=max_states, step_max_items=max_items, verbose_errors=False)
        return LLMatcher(self._tokenizer, grammar, log_level=0, limits=limits)


class _Texts:
    """The interface that llguidance wants of a tokenizer that is not one of its own."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.eos_token_id = vocabulary.end_id
        self.tokens = [*vocabulary.texts]
        self.tokens[vocabulary.end_id] = b"\xffend"
        self.special_token_ids: list[int] = []

    def __call__(self, _text: bytes) -> list[int]:
        raise AssertionError("only grammars that force tokens, or name them by text, ask for this")


def read_vocabulary(tokenizer_file: Path, vocab_size: int) -> Vocabulary:
    """Read the vocabulary of an engine.

    Args:
        tokenizer_file: a `tokenizer.json`.
        vocab_size: width of the network's logits, which may be larger than the tokenizer's vocabulary.

    Raises:
        CheckpointError: the file cannot be read, or its tokens have no text of their own.
    """
    try:
        tokenizer = Tokenizer.from_file(str(tokenizer_file))
    except Exception as error:  # the binding raises bare Exception
        raise CheckpointError(f"{tokenizer_file.name} cannot be read: {error}") from None
    return vocabulary_of(tokenizer, vocab_size)


def vocabulary_of(tokenizer: Tokenizer, vocab_size: int) -> Vocabulary:
    """Return the vocabulary of a tokenizer.

    Raises:
        CheckpointError: its tokens have no text of their own.
    """
    return _with_markers(_of_texts(tokenizer, vocab_size), tokenizer)


def _with_markers(vocabulary: Vocabulary, tokenizer: Tokenizer) -> Vocabulary:
    tokens = {
        token_id: token
        for token_id, token in sorted(tokenizer.get_added_tokens_decoder().items())
        if token_id < vocabulary.size and token.content
    }
    first = len(vocabulary.texts)
    markers = dict(enumerate(tokens, first))
    return replace(
        vocabulary,
        texts=[*vocabulary.texts, *(b"\xff<[%d]>" % index for index in markers)],
        marker_tokens=markers,
        added=AddedTokens(
            {tokens[token_id].content: index for index, token_id in markers.items()},
            frozenset(token.content for token in tokens.values() if token.special),
        ),
    )


def _of_texts(tokenizer: Tokenizer, vocab_size: int) -> Vocabulary:
    stages = list(decoder_stages(json.loads(tokenizer.to_str())["decoder"]))
    kinds = [stage["type"] for stage in stages]
    if decoder_family(tokenizer) is DecoderFamily.BYTE_LEVEL:
        hidden = hidden_tokens(tokenizer)
        tokens = [tokenizer.id_to_token(token_id) for token_id in range(vocab_size)]
        texts = [b"" if not token or token in hidden else byte_level_bytes(token) for token in tokens]
        return Vocabulary(vocab_size, [*map(_only_utf_8, texts), b""], None)
    if not kinds or kinds[0] in {"WordPiece", "BPEDecoder"}:
        raise CheckpointError(
            f"tokenizer.json: decoder: with {kinds[0] if kinds else 'none'} the text of a token depends on its"
            " neighbours; known are ByteLevel, and Replace, ByteFallback, Strip and Metaspace"
        )
    return _decoded_vocabulary(tokenizer, vocab_size, _rewritten_bytes(stages))


def _only_utf_8(text: bytes) -> bytes:
    """Drop a text with the byte 0xFF, which no valid text has and with which llguidance marks special tokens."""
    return b"" if b"\xff" in text else text


def _rewritten_bytes(stages: list[Mapping[str, Any]]) -> frozenset[int]:
    """Return the first bytes of characters that decoding replaces after it has joined byte tokens.

    Byte tokens must not spell these characters.
    """
    kinds = [stage["type"] for stage in stages]
    if "ByteFallback" not in kinds:
        return frozenset()
    later = stages[kinds.index("ByteFallback") :]
    rewritten = [stage["pattern"].get("String", "") for stage in later if stage["type"] == "Replace"]
    rewritten += [stage["replacement"] for stage in later if stage["type"] == "Metaspace"]
    return frozenset(character.encode()[0] for character in rewritten if character)


def _decoded_vocabulary(tokenizer: Tokenizer, vocab_size: int, rewritten: frozenset[int]) -> Vocabulary:
    """Decode each token after a word and alone; byte tokens, which only decode in runs, are read from their names."""
    num_tokens = min(vocab_size, max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1)
    first = [text.encode() for text in tokenizer.decode_batch([[token_id] for token_id in range(num_tokens)])]
    before = next((token_id for token_id, text in enumerate(first) if text.isalpha() and text.isascii()), None)
    if before is None:
        raise CheckpointError("tokenizer.json: vocab: no token is a word, so the texts of the others cannot be told")
    decoded = tokenizer.decode_batch([[before, token_id] for token_id in range(num_tokens)])
    texts = [text.encode()[len(first[before]) :] for text in decoded]
    has_bytes = decoder_family(tokenizer) is DecoderFamily.BYTE_FALLBACK
    for token_id in range(num_tokens):
        token = tokenizer.id_to_token(token_id)
        byte = byte_of(token) if token is not None and has_bytes else None
        if byte is not None:
            texts[token_id] = b"" if byte in rewritten else bytes([byte])
            first[token_id] = texts[token_id] if first[token_id] else b""
    padding = [b""] * (vocab_size - num_tokens)
    return _with_first([*map(_only_utf_8, texts), *padding], [*map(_only_utf_8, first), *padding])


def _with_first(texts: list[bytes], first: list[bytes]) -> Vocabulary:
    vocab_size = len(texts)
    if texts == first:
        return Vocabulary(vocab_size, [*texts, b""], None)
    texts = [*texts, b""]
    indices = {text: index for index, text in reversed(list(enumerate(texts[:vocab_size])))}
    first_ids = np.full(vocab_size, -1, np.intp)
    for token_id, text in enumerate(first):
        if not text:
            continue
        if text not in indices:
            indices[text] = len(texts)
            texts.append(text)
        first_ids[token_id] = indices[text]
    return Vocabulary(vocab_size, texts, first_ids)
