"""Proposes draft tokens from a sequence's own text: what followed the last time that the same n-gram came.

Prompt lookup decoding (Saxena 2023), which needs no draft model. Owns the index of one sequence's n-grams, which is
made piece by piece and never grows beyond its bounds, and the estimate of how often its draft tokens are accepted.
Never decides how many to propose or how large a piece is: the scheduler does.
"""

from __future__ import annotations

import collections.abc as cabc

_NGRAM = 3
#: The acceptance that is assumed before anything is known, and again after a while without draft tokens.
_PRIOR = 0.5
_MEMORY = 0.9
_OBLIVION = 0.99
#: Bits of a token id in the key of an n-gram, and the bits of a whole key.
_ID_BITS = 32
_KEY_BITS = (1 << _NGRAM * _ID_BITS) - 1


class IndexRoom:
    """The number of n-grams that the sequences sharing it may still keep. One takes about 110 bytes.

    Args:
        num_ngrams: of all sequences together, at most.
        max_half: of one sequence in each half of its index, at most.
    """

    def __init__(self, num_ngrams: int = 262_144, max_half: int = 32_768) -> None:
        self.num_left = num_ngrams
        self.max_half = max_half


class NgramDrafter:
    """The n-grams of one growing sequence.

    The index has two halves. When the newer one is full, or nothing is left of the room, the older one is forgotten and
    the newer takes its place. So a long text's last n-grams are known, `max_half` of them at least while there is room.

    Args:
        room: shared with other sequences; by default it has one of its own.

    Attributes:
        acceptance: estimated probability that a draft token is accepted, given that those before it were.
    """

    def __init__(self, room: IndexRoom | None = None) -> None:
        self.acceptance = _PRIOR
        self._room = IndexRoom() if room is None else room
        #: Where the text goes on after the last n-gram of each key.
        self._older: dict[int, int] = {}
        self._newer: dict[int, int] = {}
        #: The first n-gram that is not indexed ends here.
        self._next = _NGRAM

    def index(self, token_ids: cabc.Sequence[int], num_ngrams: int) -> int:
        """Index the next n-grams of the text.

        Args:
            token_ids: the text so far.
            num_ngrams: how many at most.

        Returns:
            how many were indexed: fewer where the text has no more, or the room has none left.
        """
        first = self._next
        # The n-gram at the very end is left out: it is the one looked up.
        end = min(len(token_ids), first + num_ngrams)
        while self._next < end:
            if not self._room.num_left or len(self._newer) >= self._room.max_half:
                self._forget_older()
            most = min(end - self._next, self._room.num_left, self._room.max_half - len(self._newer))
            if not most:
                break
            self._add(token_ids, most)
        return self._next - first

    def propose(self, token_ids: cabc.Sequence[int], num_tokens: int) -> list[int]:
        """Return up to `num_tokens` draft tokens; none if the last n-gram is new.

        Nor are there any before all of the text is indexed, so that they do not depend on how far that has come.
        """
        position = None
        if _NGRAM <= len(token_ids) <= self._next:
            key = _key(token_ids[-_NGRAM:])
            position = self._newer.get(key) or self._older.get(key)
        if position is None:
            self.decay()
            return []
        # A text that repeats itself with a short period is continued past its own end.
        period = len(token_ids) - position
        return [token_ids[position + offset % period] for offset in range(num_tokens)]

    def observe(self, num_proposed: int, num_accepted: int) -> None:
        """Learn from verified draft tokens.

        Args:
            num_proposed: how many there were, at least 1.
            num_accepted: how many of these, from the first on, were accepted.
        """
        num_tried = min(num_proposed, num_accepted + 1)
        for index in range(num_tried):
            self.acceptance += (1 - _MEMORY) * ((index < num_accepted) - self.acceptance)

    def decay(self) -> None:
        """Forget a little of what is known, in a step without draft tokens, so that a changed text is tried again."""
        self.acceptance += (1 - _OBLIVION) * (_PRIOR - self.acceptance)

    def close(self) -> None:
        """Forget the text, and leave its room to others."""
        self._forget_older()
        self._forget_older()

    def _forget_older(self) -> None:
        self._room.num_left += len(self._older)
        self._older, self._newer = self._newer, {}

    def _add(self, token_ids: cabc.Sequence[int], count: int) -> None:
        """Index `count` n-grams; there is room for all of them, should all be new."""
        first, newer = self._next, self._newer
        num_before = len(newer)
        key = _key(token_ids[first - _NGRAM : first - 1])
        for end, token_id in enumerate(token_ids[first - 1 : first - 1 + count], first):
            key = (key << _ID_BITS | token_id) & _KEY_BITS
            newer[key] = end
        self._next += count
        self._room.num_left -= len(newer) - num_before


def _key(token_ids: cabc.Sequence[int]) -> int:
    key = 0
    for token_id in token_ids:
        key = key << _ID_BITS | token_id
    return key
