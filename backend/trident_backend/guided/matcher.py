"""One output on its way through its grammar.

Owns a matcher of llguidance and the translation between its vocabulary and the network's: the texts that tokens have at
the beginning alone, and the end ids. Never raises: a matcher that has failed (the grammar is too costly at this place)
allows nothing from then on, which ends its sequence and no other.
"""

from __future__ import annotations

import time
from collections.abc import Callable, MutableSet

import numpy as np
import numpy.typing as npt
from llguidance import LLMatcher

from trident_backend.guided.lexer import Lexer
from trident_backend.guided.vocabulary import Vocabulary
from trident_backend.sequences.guide import MASK_WORD, Masks
from trident_ensemble.contract import tensors
from trident_ensemble.contract.errors import RequestError, TridentError, UnavailableError


class GrammarMatcher:
    """The `Guide` of one sequence.

    Args:
        vocabulary: the engine's.
        lexer: of the grammar. Copies of one matcher share what their lexer has learnt, and its bound of states.
        renewed: returns another lexer in place of one whose states are used up, or raises `UnavailableError`.
        end_ids: tokens that end the text, allowed exactly where it may end.
        slow: those of the grammar's followers that have been slow to follow it; this one adds and removes itself. They
            wait for each other, so while there is one, tokens are followed where masks are filled.
        begins_text: whether the output stands at the beginning of the text that is decoded, or after a prompt.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        lexer: Lexer,
        renewed: Callable[[Lexer], Lexer],
        end_ids: frozenset[int],
        slow: MutableSet[GrammarMatcher],
        *,
        begins_text: bool = True,
    ) -> None:
        self._vocabulary = vocabulary
        self._lexer = lexer
        self._matcher = lexer.copy()
        self._renewed = renewed
        self._slow = slow
        self._num_renewals = 0
        self._first_ids = vocabulary.first_ids if begins_text else None
        self._ending = end_ids | {vocabulary.end_id}
        self._ends = [(token_id // MASK_WORD, 1 << token_id % MASK_WORD) for token_id in end_ids]
        self._words = np.empty(-(-len(vocabulary.texts) // MASK_WORD), np.uint32)
        self._address = self._words.ctypes.data
        self._taken: list[int] = []
        self._num_followed = 0
        self._is_complete = False
        self._ahead_error = ""
        self._failure: TridentError | None = None
        self._clock: Callable[[], float] = time.perf_counter

    @property
    def is_finished(self) -> bool:
        """Whether the output is complete and nothing may follow but its end."""
        return self._is_complete

    @property
    def failure(self) -> TridentError | None:
        """See `Guide.failure`."""
        return self._failure

    def allows_any(self) -> bool:
        """Return whether there is a token that may come next."""
        mask = np.empty(-(-self._vocabulary.size // MASK_WORD), np.uint32)
        self.fill((), mask[None])
        return bool(mask.any())

    def fill(self, draft_ids: tuple[int, ...], masks: Masks) -> None:
        """See `Guide.fill`."""
        clock = self._clock
        began = clock()
        self._follow()
        while not self._fill_all(draft_ids, masks) and self._recover():
            pass
        if self._failure is None and self._matcher.is_error():
            said = str(self._matcher.get_error()).partition("\n")[0][:_MAX_QUOTE]
            place = f"token {len(self._taken) + 1} of the output"
            self._failure = RequestError(tensors.GUIDE.name, f"has become too costly to follow at {place}: {said}")
        self._judge(clock() - began)

    def _fill_all(self, draft_ids: tuple[int, ...], masks: Masks) -> bool:
        """Fill what can be filled, and say whether nothing failed; a guess that is not allowed is no failure."""
        masks[1:] = 0
        self._ahead_error = ""
        self._fill_next(self._matcher, masks[0], is_first=not self._taken)
        if not draft_ids or self._matcher.is_error():
            return not self._matcher.is_error()
        # A failure ahead must not stay: the guess may be wrong.
        ahead = self._matcher.deep_copy()
        for index, token_id in enumerate(draft_ids):
            place = self._place(token_id, is_first=not self._taken and index == 0)
            if {token_id, place} & self._ending or ahead.try_consume_tokens([place]) != 1:
                break
            self._fill_next(ahead, masks[index + 1], is_first=False)
        self._ahead_error = str(ahead.get_error() or "")
        return not ahead.is_error()

    def advance(self, token_id: int) -> None:
        """See `Guide.advance`."""
        self._taken.append(self._place(token_id, is_first=not self._taken))
        if not self._slow:
            clock = self._clock
            began = clock()
            self._follow()
            self._judge(clock() - began)

    def _follow(self) -> None:
        """Follow the tokens that have come since this was last done."""
        new, self._num_followed = self._taken[self._num_followed :], len(self._taken)
        if new and self._matcher.consume_tokens(new):
            self._is_complete = self._is_at_the_end()

    def _is_at_the_end(self) -> bool:
        return bool(self._matcher.is_stopped()) or self._can_spell_nothing()

    def _judge(self, seconds: float) -> None:
        """Note whether it was slow. Where it seems so, the time that its thread computes is looked at the next time."""
        if seconds <= _SLOW_S:
            self._slow.discard(self)
        elif self._clock is time.thread_time:
            self._slow.add(self)
        else:
            self._clock = time.thread_time

    def _can_spell_nothing(self) -> bool:
        """Whether the text may end, and what the grammar would have follow is no token's."""
        if self._vocabulary.spells_all or not self._matcher.is_accepting():
            return False
        words = self._words
        self._matcher.unsafe_compute_mask_ptr(self._address, words.nbytes)
        word, bit = divmod(self._vocabulary.end_id, MASK_WORD)
        if self._matcher.is_error():
            return False
        return not words[:word].any() and not int(words[word]) & ((1 << bit) - 1)

    def _place(self, token_id: int, *, is_first: bool) -> int:
        """Of the token's text in the vocabulary; the end's if it has none, which is allowed where that is."""
        place = int(self._first_ids[token_id]) if is_first and self._first_ids is not None else token_id
        return place if place >= 0 and self._vocabulary.texts[place] else self._vocabulary.end_id

    def _fill_next(self, matcher: LLMatcher, mask: Masks, *, is_first: bool) -> None:
        words = self._words
        matcher.unsafe_compute_mask_ptr(self._address, words.nbytes)
        word, bit = divmod(self._vocabulary.end_id, MASK_WORD)
        may_end = bool(int(words[word]) >> bit & 1)
        if matcher.is_error():
            # llguidance allows the end then.
            mask[:] = 0
            return
        if is_first and self._first_ids is not None:
            words = _gathered(words, self._first_ids)
        mask[:] = words[: len(mask)]
        if word < len(mask):
            # Of the last word, what lies beyond the network's vocabulary.
            mask[word] &= (1 << bit) - 1
        for word, bit in self._ends:
            mask[word] = int(mask[word]) | bit if may_end else int(mask[word]) & ~bit

    def _recover(self) -> bool:
        """Go on with another lexer, if others of the grammar may have used up the states of the one they shared.

        Whatever else fails would fail again, and compiling has its price.
        """
        if STATES_USED_UP not in str(self._matcher.get_error() or self._ahead_error):
            return False
        if self._num_renewals == _MAX_RENEWALS:
            return False
        self._num_renewals += 1
        try:
            self._lexer = self._renewed(self._lexer)
        except UnavailableError as error:
            # If only a guess is too much, the sequence itself may go on.
            self._failure = error if self._matcher.is_error() else None
            return False
        self._matcher = self._lexer.copy()
        if self._taken:
            if not self._matcher.consume_tokens(self._taken):
                return STATES_USED_UP in str(self._matcher.get_error())
            self._is_complete = self._is_at_the_end()
        return True


def _gathered(words: Masks, places: npt.NDArray[np.intp]) -> Masks:
    """The mask whose bit i is bit `places[i]` of `words`, and 0 where that is -1."""
    bits = np.unpackbits(words.view(np.uint8), bitorder="little")
    chosen = bits[places] & (places >= 0)
    padded = np.zeros(-(-len(places) // MASK_WORD) * MASK_WORD, np.uint8)
    padded[: len(places)] = chosen
    return np.packbits(padded, bitorder="little").view(np.uint32)


#: A large lexer that is shared, then one of its own.
_MAX_RENEWALS = 2
#: Longer than this no token may keep the thread that all sequences wait for.
_SLOW_S = 0.002
_MAX_QUOTE = 200
#: What llguidance says when the states are used up that the copies of a matcher share.
STATES_USED_UP = "too many states"
