"""How much of a prompt one step may take in.

Owns the token budget and the latency budget. Pure, without state of its own; never chooses whose prompt it is.
"""

from __future__ import annotations

from trident_backend.sequences.step_time import StepSize, StepTimeModel


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
        """How many tokens of a sequence, after its first `past_len`, the step still has room for.

        Args:
            size: the step so far.
            streams: its part that serves running streams; None if there are none, who would have to wait.
            past_len: tokens of the sequence that are in the cache.
            rows_per_token: rows of logits that each of these tokens brings.
        """
        if streams is None:
            return self._max_num_tokens - size.num_tokens
        assured = _LEAST_CHUNK - (size.num_tokens - streams.num_tokens)
        return max(self.spare(size, past_len, rows_per_token), min(assured, self._max_num_tokens - size.num_tokens))

    def spare(self, size: StepSize, past_len: int, rows_per_token: int = 0) -> int:
        """How many tokens of a sequence, after its first `past_len`, keep both budgets; 0 if they are used up."""
        room = max(0, self._max_num_tokens - size.num_tokens)
        if not self._target_seconds:
            return room
        step_time = self._step_times.fitted
        if step_time is None:
            return 0
        seconds = self._target_seconds / self._step_times.slack
        return min(room, step_time.largest_chunk(size, past_len, seconds, rows_per_token))


#: Prompt tokens that every step takes in, whatever the latency budget says, so that no prompt starves.
_LEAST_CHUNK = 16
