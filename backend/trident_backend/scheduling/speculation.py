"""Adds draft tokens to running streams, where that pays.

Owns how many draft tokens each stream gets in a step, and how much of which text is indexed in it. Never proposes a
token (a sequence's `NgramDrafter` does) and never accepts one: a draft token is accepted when the sampler chooses it,
so that the output is what it would have been without.
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
    """Adds draft tokens to the chunks of running streams.

    A draft token costs what one more token adds to the step, and earns a token with the probability that it and all
    before it are accepted. It is worth its cost as long as it earns more than the step's other tokens do for theirs;
    where the step is bound by computation, none is. What a draft token costs is learned from steps with draft tokens
    alone; so after many steps without, one stream gets one whatever it is thought to cost.

    Args:
        kv_cache: room for the draft tokens' keys and values.
        budget: of tokens and time, that draft tokens must keep.
        max_draft_tokens: draft tokens for one sequence in one step, at most.
        step_times: what steps cost; there are no draft tokens until that is known.
    """

    def __init__(self, kv_cache: KVCache, budget: StepBudget, max_draft_tokens: int, step_times: StepTimeModel) -> None:
        self._kv_cache = kv_cache
        self._budget = budget
        self._max_draft_tokens = max_draft_tokens
        self._step_times = step_times
        self._num_steps_without = 0
        self._index_room = IndexRoom()

    def begin(self, sequence: Sequence) -> None:
        """Give a new sequence a drafter."""
        sequence.drafter = NgramDrafter(self._index_room)

    def end(self, sequence: Sequence) -> None:
        """Free the drafter of a sequence, if it has one."""
        if sequence.drafter is not None:
            sequence.drafter.close()
            sequence.drafter = None

    def index_prompts(self, chunks: Iterable[ScheduledChunk]) -> None:
        """Index some more of the prompts that a step computes, so that they are indexed when their streams begin."""
        num_left = MAX_INDEXED
        for sequence, *_ in chunks:
            if sequence.drafter is not None and num_left:
                num_left -= sequence.drafter.index(sequence.token_ids, num_left)

    def extend(self, chunks: list[ScheduledChunk], size: StepSize, num_streams: int) -> StepSize:
        """Add draft tokens to the first `num_streams` chunks, in place; return the size of the step with them.

        Args:
            chunks: of the step, first those of its running streams.
            size: of the step without draft tokens.
            num_streams: running streams, at least 1.
        """
        step_time = self._step_times.fitted
        if step_time is None:
            return size
        tokens_per_second = size.num_tokens / step_time.seconds(size)
        self._num_steps_without += 1
        explores = self._num_steps_without >= _EXPLORE_EVERY
        per_token = step_time.per_token + step_time.per_row
        if per_token * tokens_per_second >= 1 and not explores:
            return size
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
    """Return how many draft tokens in a row, `most` at most, are all accepted with a probability above a threshold.

    Args:
        acceptance: the probability that one is accepted, given that those before it were.
        threshold: what one must earn.
        most: the most to return.
    """
    if acceptance <= threshold:
        return 0
    if threshold <= 0 or acceptance >= 1:
        return most
    return min(most, int(math.log(threshold) / math.log(acceptance)))


_EXPLORE_EVERY = 32
#: N-grams that a step indexes of texts which are not indexed yet, some tenths of a millisecond's work: of prompts, and
#: again of streams.
MAX_INDEXED = 1024
