"""Lets streams guess ahead, where that pays.

Owns the choice of who guesses how far in a step, and of how much of which text is indexed in it. Never makes a guess (a
sequence's `NgramDrafter` does) and never judges one: a guess is right when the sampler chooses it, so that what comes
out is what would have come out without.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from trident_backend.kv.cache import KVCache
from trident_backend.scheduling.budget import StepBudget
from trident_backend.sequences.ngram_drafter import IndexRoom, NgramDrafter
from trident_backend.sequences.sequence import Sequence
from trident_backend.sequences.step_time import StepSize, StepTimeModel
from trident_backend.sequences.steps import ScheduledChunk


class Speculation:
    """Adds guesses to the chunks of running streams.

    A guess costs what one more token adds to the step, and earns a token with the probability that it and all before it
    are right. It is worth its cost as long as it earns more than the step's other tokens do for theirs; where the step
    is bound by computation, none does. What a guess costs is learned from guesses alone; so after many steps without,
    one stream makes one whatever it is thought to cost.

    Args:
        kv_cache: room for the guessed tokens' keys and values.
        budget: of tokens and time, that guesses must leave as they are.
        max_draft_tokens: guesses for one sequence in one step, at most.
        step_times: what steps cost; no guesses are made until it is known.
    """

    def __init__(self, kv_cache: KVCache, budget: StepBudget, max_draft_tokens: int, step_times: StepTimeModel) -> None:
        self._kv_cache = kv_cache
        self._budget = budget
        self._max_draft_tokens = max_draft_tokens
        self._step_times = step_times
        self._num_steps_without = 0
        self._index_room = IndexRoom()

    def begin(self, sequence: Sequence) -> None:
        """Let a new sequence guess."""
        sequence.drafter = NgramDrafter(self._index_room)

    def end(self, sequence: Sequence) -> None:
        """Give back what its guesses needed."""
        if sequence.drafter is not None:
            sequence.drafter.close()
            sequence.drafter = None

    def index_prompts(self, chunks: Iterable[ScheduledChunk]) -> None:
        """Index some more of the prompts that a step computes, so that they are known when their streams begin."""
        num_left = MAX_INDEXED
        for sequence, *_ in chunks:
            if sequence.drafter is not None and num_left:
                num_left -= sequence.drafter.index(sequence.token_ids, num_left)

    def extend(self, chunks: list[ScheduledChunk], size: StepSize, num_streams: int) -> StepSize:
        """Replace those of the first `num_streams` chunks that guess; returns the size of the step with the guesses."""
        step_time = self._step_times.fitted
        if step_time is None:
            return size
        tokens_per_second = size.num_tokens / step_time.seconds(size)
        self._num_steps_without += 1
        explores = self._num_steps_without >= _EXPLORE_EVERY
        if (step_time.per_token + step_time.per_row) * tokens_per_second >= 1 and not explores:
            return size
        per_token = step_time.per_token + step_time.per_row
        # What streams may have got since the last step, and some of what is still to be indexed of longer texts.
        num_left = MAX_INDEXED + num_streams * (1 + self._max_draft_tokens)
        for index in range(num_streams):
            sequence = chunks[index].sequence
            drafter, num_tokens = sequence.drafter, len(sequence.token_ids)
            assert drafter is not None
            cost = per_token + step_time.per_pair * num_tokens
            most = 1 if explores else worthwhile(drafter.acceptance, cost * tokens_per_second, self._max_draft_tokens)
            most = min(most, sequence.max_len - num_tokens - 1, self._budget.spare(size, num_tokens) if most else 0)
            if most <= 0:
                drafter.decay()
                continue
            num_left -= drafter.index(sequence.token_ids, num_left)
            draft_ids = tuple(drafter.propose(sequence.token_ids, most))
            if draft_ids and self._kv_cache.grow(sequence, num_tokens + len(draft_ids)):
                chunks[index] = ScheduledChunk(sequence, 1, completes=True, draft_ids=draft_ids)
                size = size.with_chunk(len(draft_ids), num_tokens, len(draft_ids))
                self._num_steps_without, explores = 0, False
        return size


def worthwhile(acceptance: float, threshold: float, most: int) -> int:
    """How many guesses in a row, `most` at most, are all right with a probability above the threshold."""
    if acceptance <= threshold:
        return 0
    if threshold <= 0 or acceptance >= 1:
        return most
    return min(most, int(math.log(threshold) / math.log(acceptance)))


_EXPLORE_EVERY = 32
#: N-grams that a step indexes of texts which are not indexed yet, some tenths of a millisecond's work: of prompts, and
#: again of streams.
MAX_INDEXED = 1024
