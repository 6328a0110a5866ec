"""Estimates when a new request can have its first token.

Owns what is known of how much of a prompt is found in the cache. Pure; never refuses a request.
"""

from __future__ import annotations

from trident_backend.kv.cache import KVCache
from trident_backend.scheduling.fair_queue import FairQueue
from trident_backend.sequences.sequence import Sequence
from trident_backend.sequences.siblings import num_own_tokens
from trident_backend.sequences.step_time import StepTimeModel


class TtftEstimate:
    """An estimate of the time to first token, as if the engine computed nothing but prompts.

    Args:
        kv_cache: where some of a prompt may be found.
        max_num_tokens: tokens of one step, at most.
        step_times: what steps cost.
    """

    def __init__(self, kv_cache: KVCache, max_num_tokens: int, step_times: StepTimeModel) -> None:
        self._kv_cache = kv_cache
        self._max_num_tokens = max_num_tokens
        self._step_times = step_times
        self._hit_rate = 0.0

    def admitted(self, sequence: Sequence, num_cached: int) -> None:
        """Learn how many tokens of a sequence admitted for the first time were found in the cache."""
        if sequence.parent is None:
            self._hit_rate += _HIT_RATE_STEP * (num_cached / sequence.num_tokens - self._hit_rate)

    def seconds(self, sequence: Sequence, waiting: FairQueue) -> float:
        """Return how long it takes to compute a new sequence's prompt and those that wait before it.

        Args:
            sequence: about to be queued.
            waiting: the queue.

        Returns:
            seconds; 0 while the engine's speed is not known.
        """
        fitted = self._step_times.fitted
        if fitted is None:
            return 0.0
        if sequence.parent is not None and sequence.parent.finish_reason is None:
            num_tokens = num_own_tokens(sequence)
        else:
            num_tokens = sequence.num_tokens - self._kv_cache.num_cached(sequence)
        num_tokens += round(waiting.num_tokens_ahead(sequence) * (1 - self._hit_rate))
        num_steps = max(1.0, num_tokens / self._max_num_tokens)
        return fitted.base * num_steps + fitted.per_token * num_tokens


_HIT_RATE_STEP = 0.05
