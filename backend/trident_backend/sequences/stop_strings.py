"""Finds stop strings in the text of one growing output.

Owns how much of the output may leave. The text is what postprocessing will send, because the same detokenizer makes
it; where that leaves special tokens out, stop strings that hold the text of one are also looked for in the text that
has them. Pure. Never ends a sequence: that is the scheduler's.

Positions are characters from the beginning of the text that is sent, and tokens from its first token: with an echoed
prompt, from the prompt's. A stop string lies wholly in the output's text.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import NamedTuple

from trident_backend.sequences.readings import Reading
from trident_backend.sequences.spelled_text import SpelledText
from trident_backend.sequences.word_search import Match, WordSearch
from trident_ensemble.contract.chunk_header import ALL
from trident_ensemble.text.detokenizer import Detokenizer
from trident_ensemble.text.markers import HidingDetokenizer, HidingTable
from trident_ensemble.text.special_tokens import SpecialTokens

_NO_SPECIAL_TOKENS = SpecialTokens()


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
        special: the tokenizer's.
        markers: tokens that the text leaves out in any case.
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
        special: SpecialTokens = _NO_SPECIAL_TOKENS,
        markers: SpecialTokens = _NO_SPECIAL_TOKENS,
    ) -> None:
        self._num_echoed = len(echoed_ids)
        self._min_tokens = min_tokens
        self._include_stop = include_stop
        self._num_safe_tokens = self._num_echoed
        self._num_characters = ALL
        self._num_hidden_tail_tokens = 0
        self._shown = _shown_reading(detokenizer, anchors, echoed_ids, markers, skip_special_tokens=skip_special_tokens)
        self._search = WordSearch(words, self._shown.ends[0])
        self._spelled: SpelledText | None = None
        left_out = special | markers if skip_special_tokens else markers
        if mixed := [word for word in words if left_out.is_part_of(word)]:
            reading = Reading(detokenizer, anchors, echoed_ids, skip_special_tokens=False)
            self._spelled = SpelledText(reading, self._shown, mixed, left_out)

    def fork(self) -> StopStrings:
        """Return the same for another output after the same prompt; to be asked for before either has begun."""
        assert len(self._shown.ends) == 1
        other = copy.copy(self)
        other._shown = self._shown.fork()
        other._search = self._search.fork()
        other._spelled = None if self._spelled is None else self._spelled.fork(other._shown)
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

    @property
    def num_hidden_tail_tokens(self) -> int:
        """How many tokens at the end are no text once a stop string was found that begins with a hidden token."""
        return self._num_hidden_tail_tokens

    def append(self, token_id: int) -> str | None:
        """Take the next token; return the stop string that is complete now, if one is.

        A token that is no text, because it ended the output, is not to be appended.
        """
        found = self._end(self._cuts(token_id))
        self._release()
        return found

    def finish(self, ending_id: int | None = None) -> str | None:
        """Return the stop string that is complete with what had been undecided, if one is, as no token comes any more.

        Args:
            ending_id: the token that has ended the output, if that is the text of a stop string; longer ones may end
                with it.
        """
        cuts = [] if ending_id is None else self._cuts(ending_id)
        may_end = self._may_end
        cuts += [self._shown_cut(match) for match in self._search.search(self._shown.rest(), may_end=may_end)]
        if self._spelled is not None and ending_id is None:
            cuts += [self._spelled_cut(self._spelled, match) for match in self._spelled.finish(may_end=may_end)]
        self._num_safe_tokens = self._num_tokens
        return self._end(cuts)

    def text_end(self, num_tokens: int) -> int:
        """Return how many characters postprocessing has emitted when it was sent this many tokens, in any chunks.

        Args:
            num_tokens: 0, or from the end of the echoed prompt on: that is never asked for in pieces.
        """
        assert not 0 < num_tokens < self._num_echoed
        return self._shown.ends[num_tokens - self._num_echoed] if num_tokens else 0

    @property
    def _num_tokens(self) -> int:
        return self._num_echoed + len(self._shown.ends) - 1

    @property
    def _may_end(self) -> bool:
        return len(self._shown.ends) - 1 > self._min_tokens

    def _cuts(self, token_id: int) -> list[_Cut]:
        """Take the next token: where the text may end now."""
        text = self._shown.append(token_id)
        may_end = self._may_end
        cuts = [self._shown_cut(match) for match in self._search.search(text, may_end=may_end)]
        if self._spelled is not None:
            found = self._spelled.append(token_id, may_end=may_end)
            cuts += [self._spelled_cut(self._spelled, match) for match in found]
        return cuts

    def _shown_cut(self, match: Match) -> _Cut:
        num_characters = match.end if self._include_stop else match.begin
        return _Cut(match.end, 0, -len(match.word), match.word, num_characters)

    def _spelled_cut(self, spelled: SpelledText, match: Match) -> _Cut:
        begin, end = spelled.shown(match.begin), spelled.shown(match.end, is_end=True)
        if self._include_stop:
            begin = end._replace(num_hidden_tail_tokens=0)
        return _Cut(end.num_characters, end.num_hidden_tail_tokens, -len(match.word), match.word, *begin)

    def _end(self, cuts: list[_Cut]) -> str | None:
        if not cuts:
            return None
        cut = min(cuts)
        self._num_characters, self._num_hidden_tail_tokens = cut.num_characters, cut.num_hidden_tail_tokens
        return cut.word

    def _release(self) -> None:
        if self._num_characters != ALL:
            self._num_safe_tokens = self._num_tokens
            return
        end = self._shown.ends[-1] - self._search.num_held
        while self._num_safe_tokens < self._num_tokens and self.text_end(self._num_safe_tokens + 1) <= end:
            if self._spelled is not None and not self._spelled.may_leave(self._num_safe_tokens + 1 - self._num_echoed):
                return
            self._num_safe_tokens += 1


def _shown_reading(
    detokenizer: Detokenizer,
    anchors: bytes,
    echoed_ids: Sequence[int],
    markers: SpecialTokens,
    *,
    skip_special_tokens: bool,
) -> Reading:
    """Return the reading of the text that postprocessing makes."""
    if not markers.by_id:
        return Reading(detokenizer, anchors, echoed_ids, skip_special_tokens=skip_special_tokens)
    hidden = markers.by_id.keys()
    shown, table = HidingDetokenizer(detokenizer, hidden), HidingTable(anchors, hidden)
    return Reading(shown, table, echoed_ids, skip_special_tokens=skip_special_tokens)


class _Cut(NamedTuple):
    """The end that a stop string would make to the text; of several the least counts.

    Args:
        end: of the stop string.
        num_hidden: 1 if it ends with a token that is hidden there.
        minus_length: of the stop string.
        word: the stop string.
        num_characters: of the text.
        num_hidden_tail_tokens: at the end, which are no text.
    """

    end: int
    num_hidden: int
    minus_length: int
    word: str
    num_characters: int
    num_hidden_tail_tokens: int = 0
