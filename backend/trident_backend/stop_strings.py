"""Finds stop strings in the text of one growing output.

Owns what has been decoded of it and how much of it may leave. The text is what postprocessing will send, because the
same detokenizer makes it. Pure. Never ends a sequence: that is the scheduler's.

Positions are characters from the beginning of the text that is sent, and tokens from its first token: with an echoed
prompt, from the prompt's. A stop string lies wholly in the output's text.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

from trident_ensemble.anchors import ANCHOR, CONTINUATION, context_start
from trident_ensemble.chunk_header import ALL
from trident_ensemble.detokenizer import Detokenizer


class StopStrings:
    """Sees every token of the output that is text, in order. Of several stop strings the one that ends first counts;
    of those that end together, the longest. So what is found depends on the text alone, not on its tokens.

    Args:
        detokenizer: postprocessing's.
        anchors: of `anchors.anchor_table`.
        words: the stop strings, none empty.
        echoed_ids: the prompt, if the response begins with it.
        min_tokens: a stop string does not count if it is complete with so many tokens of output.
        include_stop: the text ends with the stop string, not before it.
        skip_special_tokens: as postprocessing will be told.
    """

    def __init__(
        self,
        detokenizer: Detokenizer,
        anchors: bytes,
        words: tuple[str, ...],
        *,
        echoed_ids: Sequence[int] = (),
        min_tokens: int = 0,
        include_stop: bool = False,
        skip_special_tokens: bool = True,
    ) -> None:
        self._detokenizer = detokenizer
        self._anchors = anchors
        self._words = [_Word(word) for word in words]
        self._first_characters = frozenset(word[0] for word in words)
        self._num_echoed = len(echoed_ids)
        self._min_tokens = min_tokens
        self._include_stop = include_stop
        self._skip_special_tokens = skip_special_tokens
        self._num_held_characters = 0
        self._num_safe_tokens = self._num_echoed
        self._num_characters = ALL
        echoed = self._decode([], echoed_ids)
        #: Where the settled text ends after none, one, two, ... tokens of the output.
        self._ends = [len(echoed)]
        self._context_ids = list(echoed_ids[context_start(anchors, list(echoed_ids), len(echoed_ids)) :])

    def fork(self) -> StopStrings:
        """The same for another output after the same prompt; to be asked for before either has begun."""
        assert len(self._ends) == 1
        other = copy.copy(self)
        other._words = [word.fork() for word in self._words]
        other._ends = list(self._ends)
        other._context_ids = list(self._context_ids)
        return other

    @property
    def num_safe_tokens(self) -> int:
        """How many tokens may leave: the text they settle can be in no stop string any more. Never falls; all tokens
        once a stop string was found, or after `finish`."""
        return self._num_safe_tokens

    @property
    def num_characters(self) -> int:
        """Where the text ends once a stop string was found; ALL before."""
        return self._num_characters

    def append(self, token_id: int) -> str | None:
        """Take the next token; the stop string that is complete now, if one is.

        A token that is no text, because it ended the output, is not to be appended.
        """
        text = self._decode(self._context_ids, (token_id,))
        self._extend_context(token_id)
        begin = self._ends[-1]
        self._ends.append(begin + len(text))
        found = self._search(text, begin)
        self._release()
        return found

    def finish(self) -> str | None:
        """No token comes any more; the stop string that is complete with what had been undecided, if one is."""
        found = self._search(self._decode(self._context_ids, (), is_last=True), self._ends[-1])
        self._num_safe_tokens = self._num_tokens
        return found

    def text_end(self, num_tokens: int) -> int:
        """How many characters postprocessing has emitted when it was sent this many tokens, in any chunks.

        Args:
            num_tokens: 0, or from the end of the echoed prompt on: that is never asked for in pieces.
        """
        assert not 0 < num_tokens < self._num_echoed
        return self._ends[num_tokens - self._num_echoed] if num_tokens else 0

    @property
    def _num_tokens(self) -> int:
        return self._num_echoed + len(self._ends) - 1

    def _decode(self, context_ids: Sequence[int], new_ids: Sequence[int], *, is_last: bool = False) -> str:
        return self._detokenizer.text(
            context_ids, new_ids, is_last=is_last, skip_special_tokens=self._skip_special_tokens
        )

    def _extend_context(self, token_id: int) -> None:
        """As `context_start` of all tokens would have it, without walking back through all that are no anchors."""
        kind = self._anchors[token_id]
        if kind == ANCHOR:
            self._context_ids.clear()
        self._context_ids.append(token_id)
        if kind == CONTINUATION:
            del self._context_ids[: context_start(self._anchors, self._context_ids, len(self._context_ids))]

    def _search(self, text: str, begin: int) -> str | None:
        """Look through the next piece of text, which begins at the character `begin`."""
        if not self._num_held_characters and self._first_characters.isdisjoint(text):
            return None
        may_end = len(self._ends) - 1 > self._min_tokens
        ends = [(end, -len(word.text), word.text) for word in self._words if (end := word.search(text, may_end))]
        if not ends:
            self._num_held_characters = max(word.num_matched for word in self._words)
            return None
        end, _, found = min(ends)
        self._num_characters = begin + end - (0 if self._include_stop else len(found))
        return found

    def _release(self) -> None:
        if self._num_characters != ALL:
            self._num_safe_tokens = self._num_tokens
            return
        end = self._ends[-1] - self._num_held_characters
        while self._num_safe_tokens < self._num_tokens and self.text_end(self._num_safe_tokens + 1) <= end:
            self._num_safe_tokens += 1


class _Word:
    """One stop string and how much of it the text ends with: the search of Knuth, Morris and Pratt."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.num_matched = 0
        #: By the length of a beginning of the text: the longest shorter beginning that it ends with.
        self._borders = [0, 0]
        border = 0
        for character in text[1:]:
            while border and character != text[border]:
                border = self._borders[border]
            border += character == text[border]
            self._borders.append(border)

    def fork(self) -> _Word:
        """The same, of which nothing has been matched."""
        other = copy.copy(self)
        other.num_matched = 0
        return other

    def search(self, piece: str, may_end: bool) -> int:
        """Where in the next piece of text the word ends first; 0 if nowhere, or if it may not end there."""
        text, borders, matched = self.text, self._borders, self.num_matched
        if not matched and text[0] not in piece:
            return 0
        for end, character in enumerate(piece, 1):
            while matched and character != text[matched]:
                matched = borders[matched]
            if character == text[matched]:
                matched += 1
                if matched == len(text):
                    if may_end:
                        return end
                    matched = borders[matched]
        self.num_matched = matched
        return 0
