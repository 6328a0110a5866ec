"""Cuts the next chunk of a prompt to what a step has room for.

Owns the size of a chunk. Never chooses whose prompt it is, never charges anybody.
"""

from __future__ import annotations

from trident_backend.kv.cache import KVCache
from trident_backend.scheduling.step_budget import StepBudget
from trident_backend.sequences import prompt_scores
from trident_backend.sequences.sequence import Sequence
from trident_backend.sequences.step_time import StepSize
from trident_backend.sequences.steps import ScheduledChunk


class PromptChunks:
    """As much of a prompt as the token budget and, beside running streams, the latency budget allow.

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
        """The next tokens of an admitted sequence, with room for them in the cache; None if the step is full.

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
        assert grown, "a prompt is computed in room that was promised at its admission"
        return ScheduledChunk(sequence, num_new_tokens, num_new_tokens == remaining, num_scored=num_scored)
