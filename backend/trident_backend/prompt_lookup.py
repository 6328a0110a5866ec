"""Guesses a sequence's next tokens from its own text: what followed the last time that these tokens stood here.

Prompt lookup decoding (Saxena 2023), which needs no draft model. Owns the index of one sequence's n-grams and the
record of how often its guesses were right. Never decides whether to guess: that is the scheduler's.
"""

from __future__ import annotations

from collections.abc import Sequence as Rows

_NGRAM = 3
#: A guess is believed this much before anything is known, and again after a while without guesses.
_PRIOR = 0.5
_MEMORY = 0.9
_OBLIVION = 0.99


class PromptLookup:
    """The n-grams of one growing sequence.

    Attributes:
        acceptance: estimated probability that a guessed token is right, given that those before it were.
    """

    def __init__(self) -> None:
        self.acceptance = _PRIOR
        self._places: dict[tuple[int, ...], int] = {}
        self._num_indexed = _NGRAM

    def propose(self, token_ids: Rows[int], num_tokens: int) -> list[int]:
        """Up to `num_tokens` tokens that may come next; none if the last n-gram is new."""
        # The n-gram at the very end is left out: it is the one looked up.
        for end in range(self._num_indexed, len(token_ids)):
            self._places[tuple(token_ids[end - _NGRAM : end])] = end
        self._num_indexed = max(self._num_indexed, len(token_ids))
        place = self._places.get(tuple(token_ids[-_NGRAM:]))
        if place is None:
            self.passed()
            return []
        # A text that repeats itself with a short period is continued past its own end.
        period = len(token_ids) - place
        return [token_ids[place + offset % period] for offset in range(num_tokens)]

    def judged(self, num_proposed: int, num_accepted: int) -> None:
        """Learn from a verified guess."""
        num_tried = min(num_proposed, num_accepted + 1)
        for index in range(num_tried):
            self.acceptance += (1 - _MEMORY) * ((index < num_accepted) - self.acceptance)

    def passed(self) -> None:
        """A step without a guess: what is known is slowly forgotten, so that a text that changes is tried again."""
        self.acceptance += (1 - _OBLIVION) * (_PRIOR - self.acceptance)
