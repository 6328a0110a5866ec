"""Decides what the next step computes.

Owns the order of sequences and their progress. There is no prefill mode and no decode mode: every sequence catches its
computed tokens up with its tokens, under the step's token budget, so prompts are computed in chunks beside running
streams. Never runs an engine, starts a thread, logs or reads a clock: times are passed in.
"""

from __future__ import annotations

import math
from bisect import insort
from collections import Counter
from collections.abc import Set

from trident_backend.kv.cache import KVCache
from trident_backend.scheduling import deadlines, outcomes
from trident_backend.scheduling.budget import PromptChunks, StepBudget
from trident_backend.scheduling.deadlines import Deadlines
from trident_backend.scheduling.fair_queue import FairQueue
from trident_backend.scheduling.prompt_order import PromptOrder
from trident_backend.scheduling.speculation import Speculation
from trident_backend.scheduling.ttft_estimate import TtftEstimate
from trident_backend.sequences import prompt_scores
from trident_backend.sequences.choices import Choices
from trident_backend.sequences.sequence import FinishReason, Sequence
from trident_backend.sequences.step_time import StepSize, StepTimeModel
from trident_backend.sequences.steps import Advance, ScheduledChunk, SchedulerOutput, new_tuple
from trident_ensemble.contract.errors import TridentError
from trident_ensemble.contract.settings import BatchSchedulerPolicy, CoreSettings


class Scheduler:
    """The scheduler: in-flight batching with chunked context, prefix reuse, fair shares, deadlines and draft tokens.

    Args:
        kv_cache: room for keys and values.
        max_num_seqs: running sequences, at most.
        max_num_tokens: tokens of one step, at most; no less than `max_num_seqs`, so that no stream waits for a prompt.
        settings: policy, latency budget, shares, speculation.
        step_times: what steps cost; learns from every update.
    """

    def __init__(
        self,
        kv_cache: KVCache,
        max_num_seqs: int,
        max_num_tokens: int,
        settings: CoreSettings,
        step_times: StepTimeModel,
    ) -> None:
        assert max_num_tokens >= max_num_seqs
        self._kv_cache = kv_cache
        self._max_num_seqs = max_num_seqs
        self._settings = settings
        self._step_times = step_times
        self._deadlines = Deadlines()
        self._ended: list[Sequence] = []
        self._first_token = TtftEstimate(kv_cache, max_num_tokens, step_times)
        self._budget = StepBudget(max_num_tokens, settings.target_itl_ms / 1000, step_times)
        self._prompt_chunks = PromptChunks(kv_cache, self._budget)
        self._speculation = Speculation(kv_cache, self._budget, settings.max_draft_tokens, step_times)
        self.waiting = FairQueue(dict(settings.tenant_weights), settings.priority_aging_ms / 1000)
        self.running: list[Sequence] = []

    def add(self, sequence: Sequence, now: float) -> None:
        """Queue a new sequence, whose `max_len` must fit into an empty cache; end it if its deadline cannot be met."""
        assert self._kv_cache.fits(sequence.max_len)
        if sequence.deadline < math.inf:
            earliest = now + self._first_token.seconds(sequence, self.waiting)
            # An idle engine tries: it keeps nothing else waiting, and what was learned of its speed may be outdated.
            if earliest > sequence.deadline and (self.waiting or self.running):
                self.finish(sequence, FinishReason.REFUSED, deadlines.unreachable(sequence, earliest))
                return
            self._deadlines.add(sequence)
        if self._settings.max_draft_tokens:
            self._speculation.begin(sequence)
        self.waiting.enter(sequence)
        self.waiting.push(sequence)

    @property
    def next_deadline(self) -> float:
        """The time from which `expire` has something to do; infinity if there is none."""
        return self._deadlines.next

    def expire(self, now: float) -> None:
        """End every sequence whose deadline has passed."""
        for sequence in self._deadlines.take_passed(now):
            self.finish(sequence, FinishReason.TIMEOUT, deadlines.missed(sequence))

    def schedule(self, now: float) -> SchedulerOutput:
        """Choose the next step; empty when nothing can run.

        Running streams go first, the oldest before the others. Prompts fill what the token budget and the latency
        budget leave, tenant by tenant as each has been served least. Draft tokens fill what is left, where they pay.
        """
        self.expire(now)
        chunks: list[ScheduledChunk] = []
        prompts: list[Sequence] = []
        preempted: list[Sequence] = []
        num_pairs = 0
        for sequence in tuple(self.running):
            if sequence.paused or sequence.awaits_mask or (preempted and sequence in preempted):
                continue
            num_tokens = len(sequence.token_ids)
            if sequence.num_computed_tokens != num_tokens - 1:
                prompts.append(sequence)
            elif num_tokens <= sequence.num_allocated_tokens or self._make_room(sequence, num_tokens, preempted):
                chunks.append(new_tuple(ScheduledChunk, (sequence, 1, True, (), 0)))
                num_pairs += num_tokens
        for tenant, num_tokens in Counter([sequence.tenant for sequence, *_ in chunks]).items():
            self.waiting.charge(tenant, num_tokens)
        streams = len(chunks)
        size = StepSize(streams, num_pairs, streams)
        # Room that was taken for a stream is not given to another; where no stream runs, it may be. While as many run
        # as may, no waiting sequence is looked at, however many tenants there are.
        admits = not (preempted and chunks) and len(self.running) < self._max_num_seqs
        if prompts or (self.waiting and admits):
            chunks, size = self._add_prompts(chunks, size, prompts, admits=admits, now=now)
        num_context_tokens = size.num_tokens - streams
        if self._settings.max_draft_tokens and streams:
            size = self._speculation.extend(chunks, size, streams)
            for sequence, _, _, draft_ids, _ in chunks[:streams]:
                if draft_ids:
                    self.waiting.charge(sequence.tenant, len(draft_ids))
        # Each copy is for a sequence that has grown for its chunk, so it is never of a step that computes nothing.
        copies = self._kv_cache.take_copies()
        return SchedulerOutput(tuple(chunks), size, num_context_tokens, tuple(preempted), copies)

    def prepare(self, output: SchedulerOutput) -> None:
        """Do, while a step is computed, what the next `schedule` would otherwise have to do first."""
        if self._settings.max_draft_tokens:
            self._speculation.index_prompts(output.chunks)
        if self._settings.max_draft_tokens or self._settings.target_itl_ms:
            self._step_times.refit_if_due()

    def _make_room(self, sequence: Sequence, num_tokens: int, preempted: list[Sequence]) -> bool:
        """Make room for a stream's next token, preempting the youngest if need be; False if it is itself that."""
        while not self._kv_cache.grow(sequence, num_tokens):
            youngest = self.running.pop()
            self._kv_cache.release(youngest)
            youngest.num_computed_tokens = 0
            youngest.num_preemptions += 1
            self.waiting.push(youngest)
            preempted.append(youngest)
            if youngest is sequence:
                return False
        return True

    def _add_prompts(
        self, chunks: list[ScheduledChunk], size: StepSize, prompts: list[Sequence], *, admits: bool, now: float
    ) -> tuple[list[ScheduledChunk], StepSize]:
        streams = size if chunks else None
        num_score_rows = prompt_scores.MAX_ROWS
        order = PromptOrder(self.waiting, prompts, admits=admits)
        while self._budget.room(size, streams, 0) and (sequence := order.next()) is not None:
            if sequence in self.waiting and not self._admit(sequence, now):
                # The next sequence is waited for if it finds no room, so that small ones do not starve it.
                order.close(sequence.tenant)
                continue
            if not sequence.sits_out and (num_score_rows or not prompt_scores.num_unscored(sequence)):
                chunk = self._prompt_chunks.cut(sequence, size, streams, num_score_rows)
                if chunk is None:
                    break
                self.waiting.charge(sequence.tenant, chunk.num_new_tokens)
                chunks.append(chunk)
                num_score_rows -= chunk.num_scored
                num_rows = chunk.num_scored + chunk.completes
                size = size.with_chunk(chunk.num_new_tokens, sequence.num_computed_tokens, num_rows)
            order.rejoin(sequence.tenant)
        return chunks, size

    def _admit(self, sequence: Sequence, now: float) -> bool:
        if len(self.running) == self._max_num_seqs:  # since another was admitted in this step
            return False
        room = sequence.max_len
        if self._settings.batch_scheduler_policy is BatchSchedulerPolicy.MAX_UTILIZATION:
            room = min(room, sequence.num_tokens + _HEADROOM_TOKENS)
        num_cached = self._kv_cache.admit(sequence, room)
        if num_cached is None:
            return False
        self.waiting.remove(sequence)
        insort(self.running, sequence, key=_age)
        sequence.num_computed_tokens = num_cached
        if sequence.first_scheduled_at is None:
            sequence.first_scheduled_at = now
            sequence.num_cached_tokens = num_cached
            self._first_token.admitted(sequence, num_cached)
        return True

    def resume(self, sequence: Sequence, error: TridentError | None = None) -> None:
        """Let a sequence whose mask was late take steps again, or end it with the error that came instead."""
        sequence.awaits_mask = False
        if error is not None:
            self.finish(sequence, FinishReason.ERROR, error)

    def update(
        self,
        output: SchedulerOutput,
        choices: Choices,
        now: float,
        seconds: float,
        *,
        late: Set[Sequence] = frozenset(),
    ) -> tuple[Advance, ...]:
        """Commit a computed step.

        Args:
            output: what was computed.
            choices: by row of `output.rows`.
            now: when it was done.
            seconds: how long it took.
            late: sequences whose choice does not count, as their mask was late; they sit out until `resume`.

        Returns:
            the sequences that got tokens, and how many.
        """
        assert len(choices.token_ids) == len(output.rows)
        advances = []
        row = 0
        for chunk in output.chunks:
            sequence, num_new_tokens, completes, draft_ids, num_scored = chunk
            past = sequence.num_computed_tokens
            sequence.num_computed_tokens = past + num_new_tokens
            if num_scored:
                outcomes.score(chunk, choices, row)
                row += num_scored
            if completes and late and sequence in late:
                row += 1 + len(draft_ids)
                sequence.awaits_mask = True
                sequence.num_computed_tokens -= 1  # its last token is computed again, and a token is chosen then
            elif completes:
                num_tokens, reason, error = outcomes.accept(chunk, choices, row)
                row += 1 + len(draft_ids)
                if num_tokens:
                    advances.append(outcomes.advance(sequence, num_tokens, now))
                if reason is FinishReason.ERROR:
                    sequence.num_computed_tokens = past  # nobody else may read what it has just written to the cache
                if reason is not None:
                    self.finish(sequence, reason, error)
            if sequence.num_computed_tokens >= sequence.next_commit and sequence.finish_reason is None:
                self._kv_cache.commit(sequence)
        self._step_times.observe(output.size, seconds)
        return tuple(advances)

    def finish(self, sequence: Sequence, reason: FinishReason, error: TridentError | None = None) -> None:
        """End a sequence, waiting or running, and free its room. To end it twice changes nothing."""
        if sequence.finish_reason is not None:
            return
        if reason is FinishReason.CANCELLED and error is None:
            reason, error = outcomes.stopped(sequence)
        sequence.finish_reason, sequence.error = reason, error
        self._speculation.end(sequence)
        self._ended.append(sequence)
        if sequence in self.waiting:
            self.waiting.remove(sequence)
        elif sequence in self.running:
            self.running.remove(sequence)
            self._kv_cache.release(sequence)
        else:
            return
        self.waiting.leave(sequence)

    def take_ended(self) -> list[Sequence]:
        """Return the sequences that have ended since the last call, each once."""
        ended, self._ended = self._ended, []
        return ended


def _age(sequence: Sequence) -> tuple[float, int]:
    """Return the sort key of running sequences: the last is preempted first, whatever its tenant and priority."""
    return sequence.arrived_at, sequence.sequence_id


#: Room for this many tokens of output is reserved with the prompt, so that preemption does not follow at once.
_HEADROOM_TOKENS = 32
