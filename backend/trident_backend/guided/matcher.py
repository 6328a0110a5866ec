"""One sequence's position in its grammar.

Owns a matcher of llguidance, and the translation between its vocabulary and the network's: texts that a token has only
at the beginning of an output, and end ids. Never raises: a matcher that has failed, because its grammar became too
costly, allows nothing from then on, which ends its own sequence and no other.
"""

from __future__ import annotations

import time
from collections.abc import Callable, MutableSet

import numpy as np
import numpy.typing as npt
from llguidance import LLMatcher

from trident_backend.guided.memory import Reservation
from trident_backend.guided.vocabulary import Vocabulary
from trident_backend.sequences.guide import MASK_WORD, Masks
from trident_ensemble.contract import tensors
from trident_ensemble.contract.errors import InvalidGuideError, TridentError, UnavailableError


class Lexer:
    """The automaton that the matchers of one grammar share, and the matcher from which they are copied.

    Args:
        matcher: a matcher at the beginning of the grammar.
        max_states: how many states the automaton may have.
        memory: the memory reserved for it. A holder of a copied matcher must hold this object too.
    """

    def __init__(self, matcher: LLMatcher, max_states: int, memory: Reservation) -> None:
        self.matcher = matcher
        self.max_states = max_states
        self.memory = memory
        self.num_copies = 0

    def copy(self) -> LLMatcher:
        """Return a matcher at the beginning of the grammar."""
        self.num_copies += 1
        return self.matcher.deep_copy()


class GrammarMatcher:
    """The `Guide` of one sequence.

    Args:
        vocabulary: texts of the engine's tokens.
        lexer: the lexer of the grammar. Copies of one matcher share the states that it has built, and their number.
        recompile: returns another lexer in place of one whose states are used up, or raises `UnavailableError`.
        end_ids: tokens that end the text; they are allowed exactly where it may end.
        slow: the grammar's matchers that have been slow; this one adds and removes itself. Matchers of one grammar wait
            for each other, so while one is slow, tokens are consumed on the thread that fills masks.
        markers: indices in the vocabulary's texts of the tokens that the grammar asks for by id.
        begins_text: whether the output is the beginning of the text that is decoded, or follows a prompt.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        lexer: Lexer,
        recompile: Callable[[Lexer], Lexer],
        end_ids: frozenset[int],
        slow: MutableSet[GrammarMatcher],
        *,
        markers: frozenset[int] = frozenset(),
        begins_text: bool = True,
    ) -> None:
        self._vocabulary = vocabulary
        self._lexer = lexer
        self._matcher = lexer.copy()
        self._recompile = recompile
        self._slow = slow
        self._num_recompiled = 0
        self._first_ids = vocabulary.first_ids if begins_text else None
        self._ending_ids = end_ids | {vocabulary.end_id}
        self._ends = sorted(end_ids)
        self._markers = {vocabulary.marker_tokens[index]: index for index in sorted(markers)}
        self._words = np.empty(-(-len(vocabulary.texts) // MASK_WORD), np.uint32)
        self._address = self._words.ctypes.data
        self._taken: list[int] = []
        self._num_consumed = 0
        self._is_complete = False
        self._ahead_error = ""
        self._failure: TridentError | None = None
        self._clock: Callable[[], float] = time.perf_counter

    @property
    def is_finished(self) -> bool:
        """Whether the output is complete, so that only its end may follow."""
        return self._is_complete

    @property
    def failure(self) -> TridentError | None:
        """Why the grammar cannot be followed any further; None while it can."""
        return self._failure

    def allows_any(self) -> bool:
        """Return whether any token may come next."""
        mask = np.empty(-(-self._vocabulary.size // MASK_WORD), np.uint32)
        self.fill((), mask[None])
        return bool(mask.any())

    def fill(self, draft_ids: tuple[int, ...], masks: Masks) -> None:
        """Write which tokens may come next, now and after each draft token.

        Args:
            draft_ids: draft tokens; the state is unchanged afterwards.
            masks: `[1 + len(draft_ids), words]`, written.
        """
        clock = self._clock
        began = clock()
        self._consume()
        while not self._fill_all(draft_ids, masks) and self._recover():
            pass
        if self._failure is None and self._matcher.is_error():
            said = str(self._matcher.get_error()).partition("\n")[0][:_MAX_QUOTE]
            where = f"token {len(self._taken) + 1} of the output"
            self._failure = InvalidGuideError(tensors.GUIDE.name, f"has become too costly to follow at {where}: {said}")
        self._judge(clock() - began)

    def _fill_all(self, draft_ids: tuple[int, ...], masks: Masks) -> bool:
        """Fill the masks and return whether nothing failed; a draft token that is not allowed is not a failure."""
        masks[1:] = 0
        self._ahead_error = ""
        self._fill_next(self._matcher, masks[0], is_first=not self._taken)
        if not draft_ids or self._matcher.is_error():
            return not self._matcher.is_error()
        # A failure ahead must not stay, because the draft tokens may be rejected.
        ahead = self._matcher.deep_copy()
        for index, token_id in enumerate(draft_ids):
            text_id = self._text_id(token_id, is_first=not self._taken and index == 0)
            if {token_id, text_id} & self._ending_ids or ahead.try_consume_tokens([text_id]) != 1:
                break
            self._fill_next(ahead, masks[index + 1], is_first=False)
        self._ahead_error = str(ahead.get_error() or "")
        return not ahead.is_error()

    def advance(self, token_id: int) -> None:
        """Move past a chosen token, which must not be one that ends the text."""
        self._taken.append(self._text_id(token_id, is_first=not self._taken))
        if not self._slow:
            clock = self._clock
            began = clock()
            self._consume()
            self._judge(clock() - began)

    def _consume(self) -> None:
        """Consume the tokens that have been chosen since the last call."""
        new, self._num_consumed = self._taken[self._num_consumed :], len(self._taken)
        if new and self._matcher.consume_tokens(new):
            self._is_complete = self._is_at_the_end()

    def _is_at_the_end(self) -> bool:
        return bool(self._matcher.is_stopped()) or self._can_spell_nothing()

    def _judge(self, seconds: float) -> None:
        """Note whether a call was slow. A call that seems slow has its thread's own CPU time measured next time."""
        if seconds <= _SLOW_S:
            self._slow.discard(self)
        elif self._clock is time.thread_time:
            self._slow.add(self)
        else:
            self._clock = time.thread_time

    def _can_spell_nothing(self) -> bool:
        """Return whether the text may end and no token spells anything that the grammar allows to follow."""
        if self._vocabulary.spells_all or not self._matcher.is_accepting():
            return False
        words = self._words
        self._matcher.unsafe_compute_mask_ptr(self._address, words.nbytes)
        word, bit = divmod(self._vocabulary.end_id, MASK_WORD)
        if self._matcher.is_error() or any(_has_bit(words, index) for index in self._markers.values()):
            return False
        return not words[:word].any() and not int(words[word]) & ((1 << bit) - 1)

    def _text_id(self, token_id: int, *, is_first: bool) -> int:
        """Return the index of a token's marker, or else of its text, in the vocabulary; the end's if it has neither."""
        if token_id in self._markers:
            return self._markers[token_id]
        index = int(self._first_ids[token_id]) if is_first and self._first_ids is not None else token_id
        return index if index >= 0 and self._vocabulary.texts[index] else self._vocabulary.end_id

    def _fill_next(self, matcher: LLMatcher, mask: Masks, *, is_first: bool) -> None:
        words = self._words
        matcher.unsafe_compute_mask_ptr(self._address, words.nbytes)
        word, bit = divmod(self._vocabulary.end_id, MASK_WORD)
        may_end = _has_bit(words, self._vocabulary.end_id)
        if matcher.is_error():
            # In this state llguidance would allow the end.
            mask[:] = 0
            return
        texts = words if not is_first or self._first_ids is None else _gather_bits(words, self._first_ids)
        mask[:] = texts[: len(mask)]
        if word < len(mask):
            # Clear the bits of the last word that lie beyond the network's vocabulary.
            mask[word] &= (1 << bit) - 1
        for token_id, index in self._markers.items():
            _put_bit(mask, token_id, _has_bit(words, index))
        for token_id in self._ends:
            _put_bit(mask, token_id, may_end)

    def _recover(self) -> bool:
        """Continue with another lexer if matchers of the same grammar may have used up the states of a shared one.

        Any other failure would happen again, and compiling is expensive.
        """
        if STATES_USED_UP not in str(self._matcher.get_error() or self._ahead_error):
            return False
        if self._num_recompiled == _MAX_RECOMPILED:
            return False
        self._num_recompiled += 1
        try:
            self._lexer = self._recompile(self._lexer)
        except UnavailableError as error:
            # If only draft tokens are too costly, the sequence itself may go on.
            self._failure = error if self._matcher.is_error() else None
            return False
        self._matcher = self._lexer.copy()
        if self._taken:
            if not self._matcher.consume_tokens(self._taken):
                return STATES_USED_UP in str(self._matcher.get_error())
            self._is_complete = self._is_at_the_end()
        return True


def _has_bit(words: Masks, index: int) -> bool:
    return bool(int(words[index // MASK_WORD]) >> index % MASK_WORD & 1)


def _put_bit(words: Masks, index: int, is_set: bool) -> None:
    word, bit = index // MASK_WORD, 1 << index % MASK_WORD
    words[word] = int(words[word]) | bit if is_set else int(words[word]) & ~bit


def _gather_bits(words: Masks, indices: npt.NDArray[np.intp]) -> Masks:
    """Return the mask whose bit i is bit `indices[i]` of `words`, or 0 where the index is -1."""
    bits = np.unpackbits(words.view(np.uint8), bitorder="little")
    chosen = bits[indices] & (indices >= 0)
    padded = np.zeros(-(-len(indices) // MASK_WORD) * MASK_WORD, np.uint8)
    padded[: len(indices)] = chosen
    return np.packbits(padded, bitorder="little").view(np.uint32)


#: First a large lexer that is shared, then one for the sequence alone.
_MAX_RECOMPILED = 2
#: Seconds for which one token may occupy the thread that all sequences wait for.
_SLOW_S = 0.002
_MAX_QUOTE = 200
#: What llguidance says when the states that the copies of a matcher share are used up.
STATES_USED_UP = "too many states"
