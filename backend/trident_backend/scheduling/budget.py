"""How much of a prompt one step may take in.

Owns the token budget, the latency budget and the size of a prompt's next chunk. Pure, without state of its own; never
chooses whose prompt it is, never charges a tenant.
"""

from __future__ import annotations

from trident_backend.kv.cache import KVCache
from trident_backend.sequences import prompt_scores
from trident_backend.sequences.sequence import Sequence
from trident_backend.sequences.step_time import StepSize, StepTimeModel
from trident_backend.sequences.steps import ScheduledChunk


class StepBudget:
    """The most prompt tokens for a step.

    Args:
        max_num_tokens: tokens of one step, at most.
        target_seconds: what a step beside running streams may take; 0 for no such bound.
        step_times: what steps cost.
    """

    def __init__(self, max_num_tokens: int, target_seconds: float, step_times: StepTimeModel) -> None:
        self._max_num_tokens = max_num_tokens
        self._target_seconds = target_seconds
        self._step_times = step_times

    def room(self, size: StepSize, streams: StepSize | None, past_len: int, rows_per_token: int = 0) -> int:
        """Return how many further tokens of a sequence's prompt the step has room for.

        Beside running streams every step takes in a few prompt tokens whatever the latency budget says, so that no
        prompt starves; without them there is no stream to wait, and the token budget alone counts.

        Args:
            size: the step so far.
            streams: its part that serves running streams; None if there are none.
            past_len: tokens of the sequence that are in the cache.
            rows_per_token: rows of logits that each further token brings.
        """
        if streams is None:
            return self._max_num_tokens - size.num_tokens
        assured = _LEAST_CHUNK - (size.num_tokens - streams.num_tokens)
        return max(self.spare(size, past_len, rows_per_token), min(assured, self._max_num_tokens - size.num_tokens))

    def spare(self, size: StepSize, past_len: int, rows_per_token: int = 0) -> int:
        """Return how many further tokens of a sequence keep the step within both budgets; 0 if they are used up.

        Args:
            size: the step so far.
            past_len: tokens of the sequence that are in the cache.
            rows_per_token: rows of logits that each further token brings.
        """
        room = max(0, self._max_num_tokens - size.num_tokens)
        if not self._target_seconds:
            return room
        step_time = self._step_times.fitted
        if step_time is None:
            return 0
        seconds = self._target_seconds / self._step_times.slack
        return min(room, step_time.largest_chunk(size, past_len, seconds, rows_per_token))


class PromptChunks:
    """Cuts prompts into chunks as large as the budgets allow.

    Args:
        kv_cache: where the tokens' keys and values go.
        budget: of tokens and time.
    """

    def __init__(self, kv_cache: KVCache, budget: StepBudget) -> None:
        self._kv_cache = kv_cache
        self._budget = budget

    def cut(
        self, sequence: Sequence, size: StepSize, streams: StepSize | None, num_score_rows: int
    ) -> ScheduledChunk | None:
        """Return the next chunk of an admitted sequence, with room for it in the cache; None if the step is full.

        Args:
            sequence: whose prompt is not computed yet.
            size: the step so far.
            streams: its part that serves running streams; None if there are none.
            num_score_rows: how many rows may still score a prompt; at least 1 if this prompt is to be scored.
        """
        past, remaining = sequence.num_computed_tokens, sequence.num_remaining_tokens
        scores = prompt_scores.num_unscored(sequence) > 0
        num_new_tokens = min(remaining, self._budget.room(size, streams, past, rows_per_token=int(scores)))
        if num_new_tokens == 0:
            return None
        num_scored = 0
        if scores:
            num_new_tokens, num_scored = prompt_scores.chunk(sequence, num_new_tokens, num_score_rows)
        grown = self._kv_cache.grow(sequence, past + num_new_tokens)
        assert grown, "a prompt is computed in room that was reserved at its admission"
        return ScheduledChunk(sequence, num_new_tokens, num_new_tokens == remaining, num_scored=num_scored)


#: Prompt tokens that every step takes in, whatever the latency budget says.
_LEAST_CHUNK = 16
