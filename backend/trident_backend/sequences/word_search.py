"""Finds words in a text that comes in pieces.

Owns how much of each word the text ends with. Pure. Never knows tokens: positions are characters.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Iterable
from typing import NamedTuple


class Match(NamedTuple):
    """A word in the text: where it begins, where it ends, and what it is."""

    begin: int
    end: int
    word: str


class Marks:
    """The spans of a text that spell special tokens, as far back as a word may reach.

    A match must have at least one of them, and none in part.

    Args:
        longest: the length of the longest word.
    """

    def __init__(self, longest: int) -> None:
        self._longest = longest
        self._spans: deque[tuple[int, int]] = deque()

    def fork(self) -> Marks:
        """Return the same for another text that has begun in the same way."""
        other = copy.copy(self)
        other._spans = self._spans.copy()
        return other

    def add(self, begin: int, end: int) -> None:
        """Note one behind all others."""
        while self._spans and self._spans[0][1] <= begin - self._longest:
            self._spans.popleft()
        self._spans.append((begin, end))

    def split(self, position: int) -> bool:
        """Return whether a position is inside of one."""
        return any(begin < position < end for begin, end in self._spans)

    def allow(self, begin: int, end: int) -> bool:
        """Return whether a match may begin and end there."""
        has_one = any(begin <= first and last <= end for first, last in self._spans)
        return has_one and not self.split(begin) and not self.split(end)


class WordSearch:
    """The search for several words in one text.

    Args:
        words: none empty.
        position: where the text begins.
        marks: if given, they decide which matches count; to be noted before the piece that has them.
    """

    def __init__(self, words: Iterable[str], position: int, marks: Marks | None = None) -> None:
        self._words = [_Word(word) for word in words]
        self._first_characters = frozenset(word.text[0] for word in self._words)
        self._position = position
        self._marks = marks
        self._num_held = 0

    def fork(self, marks: Marks | None = None) -> WordSearch:
        """Return the same for another text that has begun in the same way."""
        other = copy.copy(self)
        other._words = [copy.copy(word) for word in self._words]
        other._marks = marks
        return other

    @property
    def num_held(self) -> int:
        """How many characters at the end of the text may be the beginning of a match."""
        return self._num_held

    def search(self, piece: str, *, may_end: bool) -> list[Match]:
        """Look through the next piece of the text.

        Args:
            piece: the text.
            may_end: whether a word counts if it is complete here.

        Returns:
            the first match of each word that ends in this piece; nothing is to be looked for after there was one.
        """
        position = self._position
        self._position += len(piece)
        if not self._num_held and self._first_characters.isdisjoint(piece):
            return []
        found = []
        for word in self._words:
            if end := word.search(piece, position, self._marks, may_end=may_end):
                found.append(Match(position + end - len(word.text), position + end, word.text))
        if not found:
            self._num_held = max([word.hold(self._position, self._marks) for word in self._words])
        return found


class _Word:
    """One word and how much of it the text ends with: the search of Knuth, Morris and Pratt."""

    def __init__(self, text: str) -> None:
        self.text = text
        self._num_matched = 0
        #: By the length of a beginning of the text: the longest shorter beginning that it ends with.
        self._borders = [0, 0]
        border = 0
        for character in text[1:]:
            while border and character != text[border]:
                border = self._borders[border]
            border += character == text[border]
            self._borders.append(border)

    def search(self, piece: str, position: int, marks: Marks | None, *, may_end: bool) -> int:
        """Return where in the next piece the word ends first; 0 if nowhere, or if it may not end there."""
        text, borders, matched = self.text, self._borders, self._num_matched
        if not matched and text[0] not in piece:
            return 0
        for end, character in enumerate(piece, 1):
            while matched and character != text[matched]:
                matched = borders[matched]
            if character == text[matched]:
                matched += 1
                if matched == len(text):
                    if may_end and (marks is None or marks.allow(position + end - matched, position + end)):
                        return end
                    matched = borders[matched]
        self._num_matched = matched
        return 0

    def hold(self, position: int, marks: Marks | None) -> int:
        """Return how much of the text up to a position, its end, may be the beginning of a match."""
        while self._num_matched and marks is not None and marks.split(position - self._num_matched):
            self._num_matched = self._borders[self._num_matched]
        return self._num_matched
