"""The special tokens of a tokenizer, and the texts by which clients name them.

Owns which token a text names. A special token can be named as a stop word even where special tokens are left out of the
text. Never decodes a stream.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

from tokenizers import Tokenizer

from trident_ensemble.text.detokenizer import make_detokenizer


@dataclass(frozen=True)
class SpecialToken:
    """A special token.

    Args:
        content: its name in the tokenizer's files.
        texts: the texts to which it decodes where special tokens are not skipped; usually its content.
        lstrip: the tokenizer takes spaces before the token for a part of it.
        rstrip: the tokenizer takes spaces after the token for a part of it.
    """

    content: str
    texts: frozenset[str]
    lstrip: bool = False
    rstrip: bool = False

    def is_named_by(self, word: str) -> bool:
        """Return whether a text names this token and nothing else."""
        name = word.lstrip() if self.lstrip else word
        name = name.rstrip() if self.rstrip else name
        return name == self.content or name in self.texts


@dataclass(frozen=True)
class SpecialTokens:
    """All special tokens of a tokenizer.

    Args:
        by_id: id -> special token.
    """

    by_id: Mapping[int, SpecialToken] = field(default_factory=dict)

    def __or__(self, other: SpecialTokens) -> SpecialTokens:
        """Return the tokens of both; this one, if the other has none."""
        return SpecialTokens({**other.by_id, **self.by_id}) if other.by_id else self

    def ids_of(self, word: str) -> tuple[int, ...]:
        """Return the ids of the tokens that a text names; none if it has any other text."""
        names = dict.fromkeys((word, word.lstrip(), word.rstrip(), word.strip()))
        found = [token_id for name in names for token_id in self._ids_by_name.get(name, ())]
        return tuple(dict.fromkeys(token_id for token_id in found if self.by_id[token_id].is_named_by(word)))

    def is_part_of(self, word: str) -> bool:
        """Return whether a text has the text of a special token and other text beside it."""
        if self._first_characters.isdisjoint(word):
            return False
        return any(text in word and text != word for text in self._texts)

    @cached_property
    def _ids_by_name(self) -> dict[str, list[int]]:
        ids: dict[str, list[int]] = {}
        for token_id, token in self.by_id.items():
            for name in {token.content, *token.texts}:
                ids.setdefault(name, []).append(token_id)
        return ids

    @cached_property
    def _texts(self) -> frozenset[str]:
        return frozenset().union(*(token.texts for token in self.by_id.values()))

    @cached_property
    def _first_characters(self) -> frozenset[str]:
        return frozenset(text[0] for text in self._texts)


class TokenSpeller(Protocol):
    """The bytes of tokens, as `token_bytes.TokenBytes` gives them."""

    def of(self, token_id: int, *, begins: bool) -> bytes:
        """Return the bytes of a token, at the beginning of a text or within it."""
        ...

    def is_special(self, token_id: int) -> bool:
        """Return whether a token is no text where special tokens are left out."""
        ...


def named_tokens(speller: TokenSpeller, token_ids: Iterable[int]) -> SpecialTokens:
    """Return any tokens as if they were special ones, named by their texts."""
    by_id = {}
    for token_id in token_ids:
        spelled = [speller.of(token_id, begins=begins).decode(errors="replace").strip() for begins in (False, True)]
        by_id[token_id] = SpecialToken(spelled[0], frozenset(spelled) - {""})
    return SpecialTokens(by_id)


def special_tokens_of(tokenizer: Tokenizer) -> SpecialTokens:
    """Return the special tokens of a tokenizer.

    Raises:
        CheckpointError: its decoder cannot be streamed exactly.
    """
    detokenizer = make_detokenizer(tokenizer)

    def texts(token_id: int) -> frozenset[str]:
        # Once at the beginning of a text, and once after another token, from which a space may separate it.
        contexts: tuple[tuple[int, ...], ...] = ((), (token_id,))
        decoded = [
            detokenizer.text(context, (token_id,), is_last=True, skip_special_tokens=False) for context in contexts
        ]
        return frozenset(text.strip() for text in decoded) - {""}

    return SpecialTokens(
        {
            token_id: SpecialToken(token.content, texts(token_id), token.lstrip, token.rstrip)
            for token_id, token in tokenizer.get_added_tokens_decoder().items()
            if token.special
        }
    )
