"""An output's text with its special tokens, while what is sent leaves them out.

Owns the search for stop strings that hold the text of a special token, and where a position in the one text is in the
other. Pure. Never decides which stop string counts.
"""

from __future__ import annotations

import copy
from bisect import bisect_right
from typing import NamedTuple

from trident_backend.sequences.readings import Reading
from trident_backend.sequences.word_search import Marks, Match, WordSearch
from trident_ensemble.text.special_tokens import SpecialTokens


class ShownPosition(NamedTuple):
    """A position in the text that is shown.

    Args:
        num_characters: before it, of what the tokens decode to without the last ones.
        num_hidden_tail_tokens: how many last ones are left out.
    """

    num_characters: int
    num_hidden_tail_tokens: int


class SpelledText:
    """The output's text with its special tokens, and the stop strings that hold the text of one.

    Args:
        reading: of the text with special tokens.
        shown: of the text without, one token ahead.
        words: the stop strings.
        special: the tokenizer's.
    """

    def __init__(self, reading: Reading, shown: Reading, words: list[str], special: SpecialTokens) -> None:
        self._reading = reading
        self._shown = shown
        self._special = special
        self._marks = Marks(max(map(len, words)))
        self._search = WordSearch(words, reading.ends[0], self._marks)
        #: By their index among the tokens: where a hidden token's own text begins, and how many characters of the text
        #: that is shown were undecided there.
        self._hidden: dict[int, tuple[int, int]] = {}

    def fork(self, shown: Reading) -> SpelledText:
        """Return the same for another output that has begun in the same way."""
        other = copy.copy(self)
        other._reading, other._shown = self._reading.fork(), shown
        other._marks = self._marks.fork()
        other._search = self._search.fork(other._marks)
        other._hidden = {}
        return other

    def append(self, token_id: int, *, may_end: bool) -> list[Match]:
        """Take the next token; return the stop strings that end in its text."""
        text = self._reading.append(token_id)
        token = self._special.by_id.get(token_id)
        if token is not None:
            end = self._reading.ends[-1]
            begin = end - min(len(text), len(token.content))
            self._marks.add(begin, end)
            self._hidden[len(self._reading.ends) - 1] = begin, len(self._shown.rest())
        return self._search.search(text, may_end=may_end)

    def finish(self, *, may_end: bool) -> list[Match]:
        """Return the stop strings that end in what had been undecided, as no token comes any more."""
        return self._search.search(self._reading.rest(), may_end=may_end)

    def may_leave(self, num_tokens: int) -> bool:
        """Return whether nothing of so many tokens of the output can be in a match any more."""
        return self._reading.ends[num_tokens] <= self._reading.ends[-1] - self._search.num_held

    def shown(self, position: int, *, is_end: bool = False) -> ShownPosition:
        """Return where a position is in the text that is shown: at a character's beginning, or at its end."""
        ends, shown = self._reading.ends, self._shown.ends
        count = bisect_right(ends, position - is_end)
        if count == len(ends):
            return ShownPosition(shown[-1] + position - ends[-1], 0)
        if count in self._hidden:
            begin, num_undecided = self._hidden[count]
            before = num_undecided if position >= begin else min(position - ends[count - 1], num_undecided)
            return ShownPosition(shown[count - 1] + before, len(ends) - count)
        return ShownPosition(max(shown[count - 1], shown[count] - (ends[count] - position)), 0)
