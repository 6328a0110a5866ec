"""Decides what the next step computes.

Owns the order of sequences and their progress. There is no prefill mode and no decode mode: every sequence catches its
computed tokens up with its tokens, under the step's token budget, so prompts are computed in chunks beside running
streams. Pure: no engine, no thread, no clock, no logger.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence as Rows
from dataclasses import dataclass

from trident_backend.blocks import KVCache
from trident_backend.sequence import FinishReason, Sequence


@dataclass(frozen=True)
class ScheduledChunk:
    """The next `num_new_tokens` uncomputed tokens of a sequence; `completes` when none remain after them."""

    sequence: Sequence
    num_new_tokens: int
    completes: bool


@dataclass(frozen=True)
class SchedulerOutput:
    """One step. `sampled` are the sequences that get a token from it, in the order of their rows of logits."""

    chunks: tuple[ScheduledChunk, ...]

    @property
    def sampled(self) -> tuple[Sequence, ...]:
        """The sequences whose logits are wanted."""
        return tuple(chunk.sequence for chunk in self.chunks if chunk.completes)

    @property
    def num_tokens(self) -> int:
        """Tokens the step computes."""
        return sum(chunk.num_new_tokens for chunk in self.chunks)


class Scheduler:
    """In-flight batching with chunked context; a sequence is admitted only with room for all it may become.

    Args:
        kv_cache: room for keys and values.
        max_num_seqs: running sequences, at most.
        max_num_tokens: tokens of one step, at most; no less than `max_num_seqs`, so that no stream waits for a prompt.
    """

    def __init__(self, kv_cache: KVCache, max_num_seqs: int, max_num_tokens: int) -> None:
        assert max_num_tokens >= max_num_seqs
        self._kv_cache = kv_cache
        self._max_num_seqs = max_num_seqs
        self._max_num_tokens = max_num_tokens
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []

    def add(self, sequence: Sequence) -> None:
        """Queue a new sequence; its `max_len` must fit into an empty cache."""
        assert self._kv_cache.fits(sequence.max_len)
        self.waiting.append(sequence)

    def schedule(self) -> SchedulerOutput:
        """Choose the next step; empty when nothing can run.

        Running sequences go first, those nearest to their next token before the others; whoever waits is admitted in
        the order of arrival while budget, places and blocks last.
        """
        budget = self._max_num_tokens
        chunks: list[ScheduledChunk] = []
        for sequence in sorted(self.running, key=lambda running: running.num_remaining_tokens):
            if budget == 0:
                break
            if not sequence.paused:
                chunks.append(self._chunk(sequence, budget))
                budget -= chunks[-1].num_new_tokens
        while budget and self.waiting and len(self.running) < self._max_num_seqs:
            if not self._kv_cache.admit(self.waiting[0]):
                break
            sequence = self.waiting.popleft()
            self.running.append(sequence)
            chunks.append(self._chunk(sequence, budget))
            budget -= chunks[-1].num_new_tokens
        return SchedulerOutput(tuple(chunks))

    def _chunk(self, sequence: Sequence, budget: int) -> ScheduledChunk:
        num_new_tokens = min(sequence.num_remaining_tokens, budget)
        self._kv_cache.grow(sequence, sequence.num_computed_tokens + num_new_tokens)
        return ScheduledChunk(sequence, num_new_tokens, num_new_tokens == sequence.num_remaining_tokens)

    def update(self, output: SchedulerOutput, token_ids: Rows[int]) -> None:
        """Commit a computed step.

        Args:
            output: what was computed.
            token_ids: the chosen token of each of `output.sampled`.
        """
        for chunk in output.chunks:
            chunk.sequence.num_computed_tokens += chunk.num_new_tokens
        for sequence, token_id in zip(output.sampled, token_ids, strict=True):
            sequence.token_ids.append(token_id)
            if token_id in sequence.end_ids:
                self.finish(sequence, FinishReason.EOS)
            elif sequence.num_output_tokens == sequence.max_tokens:
                self.finish(sequence, FinishReason.LENGTH)

    def finish(self, sequence: Sequence, reason: FinishReason) -> None:
        """End a sequence, wherever it is, and free its room; ending it twice changes nothing."""
        if sequence.finish_reason is not None:
            return
        sequence.finish_reason = reason
        if sequence in self.running:
            self.running.remove(sequence)
            self._kv_cache.release(sequence)
        elif sequence in self.waiting:
            self.waiting.remove(sequence)
