"""Random histories of the whole core, checked after every event, with output as if each request had been alone.

The mock engine really keeps a KV cache, in blocks or in slots, so that room that is shared, leaked, copied or handed
over wrongly shows as a wrong token. Prompts begin alike and repeat themselves, pools are small and steps take simulated
time, so that prefix reuse, eviction, preemption, draft tokens, deadlines and the latency budget all come into play; so
do siblings that share a prompt, prompts that are scored, stop ids, stop strings, guides whose masks may be late, and
positions where there is no token to choose.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.fakes.core import Clock, TimedEngine, linear, make_sequence
from tests.fakes.followers import Grammar, ScoringSampler, Words, alone
from tests.fakes.masks import ChosenMasks
from trident_backend.core import EngineCore
from trident_backend.engine.host_logits import HostLogits
from trident_backend.engine.mock import next_token
from trident_backend.engine.numpy_kernels import NumpyKernels
from trident_backend.engine.protocol import EngineSpec
from trident_backend.kv import cache as kv_cache
from trident_backend.sequences import prompt_scores
from trident_backend.sequences.sampling_params import SamplingParams
from trident_backend.sequences.sequence import FinishReason, Sequence
from trident_backend.sequences.steps import StepResult
from trident_ensemble.contract.errors import CancelledError, DeadlineError, EngineError
from trident_ensemble.contract.manifest import KVKind
from trident_ensemble.contract.settings import BatchSchedulerPolicy, CoreSettings

pytestmark = pytest.mark.slow

SPEC = EngineSpec(vocab_size=5, max_num_seqs=4, max_num_tokens=32, max_seq_len=96, block_size=4, num_blocks=24)
#: Of as many tokens; a slot holds the longest request.
SLOTS = replace(SPEC, block_size=96, num_blocks=4, kv_kind=KVKind.SLOTS)
TEXTS = ([0, 1, 2, 3] * 10, [4, 4, 1] * 13, [2, 0, 4, 3, 1, 1, 0, 2, 2, 4, 0, 3, 0, 0, 1, 4, 2, 3, 3, 1] * 2)
#: Seconds of a step: bound by its weights, by its products, by its attention.
COSTS = (linear(0.01, 1e-5), linear(0.001, 0.001), linear(0.002, 1e-4, 2e-5))

PROMPTS = st.builds(
    lambda text, cut, tail: text[:cut] + tail,
    st.sampled_from(TEXTS),
    st.integers(0, 32),
    st.lists(st.integers(0, SPEC.vocab_size - 1), min_size=1, max_size=4),
)
# Of one and the same strategy only the first would count.
GREEDY = [st.just(SamplingParams()) for _ in range(3)]
SAMPLING = st.one_of(*GREEDY, st.builds(SamplingParams, st.just(0.5), seed=st.integers(0, 99)))
REQUESTS = st.fixed_dictionaries(
    {
        "prompt": PROMPTS,
        "max_tokens": st.sampled_from([*range(13)] * 3 + [*range(40, 61)]),
        "sampling": SAMPLING,
        "end_ids": st.sampled_from([frozenset(), frozenset(), frozenset({0})]),
        "tenant": st.sampled_from(["a", "b", "c"]),
        "priority": st.integers(-2, 2),
        "cache_salt": st.sampled_from(["", "", "pepper"]),
        "reuse_cache": st.sampled_from([True, True, True, False]),
        "timeout": st.sampled_from([math.inf] * 6 + [0.05, 0.4]),
        "num_siblings": st.sampled_from([0, 0, 0, 1, 3]),
        "stop_ids": st.sampled_from([frozenset(), frozenset(), frozenset({3})]),
        "include_stop": st.booleans(),
        "words": st.sampled_from([(), (), ("01", "4"), ("224", "31")]),
        "grammar": st.sampled_from([None, None, 7, 50]),
        "scores": st.sampled_from(["", "", "output", "prompt", "all"]),
        "dead_end": st.sampled_from([None] * 7 + [0, 3]),
    }
)
SETTINGS = st.builds(
    CoreSettings,
    batch_scheduler_policy=st.sampled_from(BatchSchedulerPolicy),
    token_budget=st.sampled_from([0, 7]),
    target_itl_ms=st.sampled_from([0, 0, 15]),
    enable_kv_cache_reuse=st.sampled_from([True, True, False]),
    max_draft_tokens=st.sampled_from([0, 3]),
    priority_aging_ms=st.sampled_from([20, 1000]),
    tenant_weights=st.sampled_from([(), (("a", 3.0),)]),
)


class Histories(RuleBasedStateMachine):
    """Adds, aborts, pauses, failures and steps in any order."""

    #: The engine, with a small pool and with a larger one.
    specs = SPEC, replace(SPEC, num_blocks=32)

    @initialize(chosen=SETTINGS, size=st.sampled_from([0, 1]), cost=st.sampled_from(COSTS))
    def begin(self, chosen: CoreSettings, size: int, cost: object) -> None:
        self.settings = chosen
        self.clock = Clock()
        # Fewer than a step has tokens.
        self.patches = [patch.object(prompt_scores, "MAX_ROWS", 5), patch.object(kv_cache, "SLOT_HASH_BLOCK_SIZE", 4)]
        for patched in self.patches:
            patched.start()
        self.engine = TimedEngine(self.specs[size], self.clock, cost)  # type: ignore[arg-type]
        self.core = EngineCore(self.engine, chosen, self.clock)
        self.core._masks.close()
        self.masks = self.core._masks = ChosenMasks(SPEC.vocab_size)
        self.sampler = ScoringSampler(self.core._sampler, SPEC.vocab_size)
        self.core._sampler = self.sampler  # type: ignore[assignment]
        self.sequences: list[Sequence] = []
        self.ended: Counter[int] = Counter()
        self.asked: set[Sequence] = set()
        self.num_failures = 0

    @rule(requests=st.lists(REQUESTS, min_size=1, max_size=4))
    def add(self, requests: list[dict[str, Any]]) -> None:
        for request in requests:
            fields = dict(request)
            fields["arrived_at"], fields["deadline"] = self.clock.now, self.clock.now + fields.pop("timeout")
            words, length, scores, dead_end = (fields.pop(name) for name in ("words", "grammar", "scores", "dead_end"))
            parent = None
            for index in range(1 + fields.pop("num_siblings")):
                # Where only the first is scored, the others may leave and find what it must not.
                scored = scores == "all" or (scores == "prompt" and index == 0)
                sampling = replace(
                    fields["sampling"], seed=fields["sampling"].seed + index, index=index,
                    log_probs=bool(scores), prompt_log_probs=scored,
                )  # fmt: skip
                own: dict[str, Any] = {
                    "sampling": sampling,
                    "parent": parent,
                    "stop_strings": Words(words) if words else None,
                    "guide": Grammar(length) if length else None,
                }
                sequence = make_sequence(len(self.sequences), **{**fields, **own})
                sequence.reuse_cache &= scores != "prompt" or index > 0
                if dead_end is not None and index % 2 == 0:
                    self.sampler.dead_ends[sequence.sequence_id] = sequence.num_prompt_tokens + dead_end
                parent = parent or sequence
                self.sequences.append(sequence)
                self.core.scheduler.add(sequence, self.clock.now)

    @precondition(lambda self: len(self.live) > 3)
    @rule(data=st.data(), asked=st.booleans())
    def abort(self, data: st.DataObject, asked: bool) -> None:
        sequence = data.draw(st.sampled_from(self.sequences))
        error = None if asked else CancelledError("a test's choice")
        self.asked |= {sequence} if asked and sequence.finish_reason is None else set()
        self.core.scheduler.finish(sequence, FinishReason.CANCELLED, error)

    @precondition(lambda self: self.sequences)
    @rule(data=st.data())
    def pause_or_resume(self, data: st.DataObject) -> None:
        sequence = data.draw(st.sampled_from(self.sequences))
        sequence.paused = not sequence.paused

    @precondition(lambda self: any(s.guide for s in self.live))
    @rule(data=st.data())
    def masks_are_slow_or_quick(self, data: st.DataObject) -> None:
        sequence = data.draw(st.sampled_from([s for s in self.live if s.guide]))
        self.masks.slow ^= {sequence}

    @rule(seconds=st.sampled_from([0.001, 0.1]))
    def time_passes(self, seconds: float) -> None:
        self.clock.now += seconds

    @rule(num_steps=st.sampled_from([1, 5, 25]))
    def step(self, num_steps: int) -> None:
        for _ in range(num_steps):
            # Where nothing can run no time passes, and the next step is the same.
            if not self.checked_step().output.chunks:
                break

    @precondition(lambda self: self.num_failures < 2)
    @rule()
    def engine_failure(self) -> None:
        self.num_failures += 1
        self.engine.fail_next = True
        held = list(self.core.scheduler.running)
        result = self.core.step()
        self.engine.fail_next = False
        if result.output.chunks:
            assert isinstance(result.error, EngineError)
            hit = {chunk.sequence for chunk in result.output.chunks}
            assert all(s.finish_reason is FinishReason.ERROR and isinstance(s.error, EngineError) for s in hit)
            others = [s for s in held if s not in hit]
            assert all(s.finish_reason is None or isinstance(s.error, DeadlineError) for s in others)

    def checked_step(self) -> StepResult:
        """A step, held to everything that is promised of every step."""
        running, began = list(self.core.scheduler.running), self.clock.now
        waits = self.masks.held & self.masks.slow
        paused = {s: s.num_tokens for s in self.sequences if s.paused or s in waits}
        streams = [s for s in running if s.num_remaining_tokens == 1 and s not in paused and s.deadline > began]
        result = self.core.step()
        assert result.error is None
        assert result.output.num_tokens <= (self.settings.token_budget or SPEC.max_num_tokens)
        assert not result.output.chunks or result.output.size == self.engine.last_size
        preempted = result.output.preempted
        may_preempt = self.settings.batch_scheduler_policy is BatchSchedulerPolicy.MAX_UTILIZATION
        assert not preempted or (may_preempt and self.engine.spec.kv_kind is KVKind.BLOCKS)
        scored = sum(chunk.num_scored for chunk in result.output.chunks)
        assert scored <= prompt_scores.MAX_ROWS
        assert result.output.size.num_rows == scored + sum(
            1 + len(chunk.draft_ids) for chunk in result.output.chunks if chunk.completes
        )
        chosen = [chunk.sequence for chunk in result.output.chunks]
        assert len(chosen) == len(set(chosen))
        if set(chosen) & set(streams):
            assert not set(chosen) & set(preempted), "it lost its room to a stream and got it back at once"
        advanced = {advance.sequence for advance in result.advances}
        stuck = {s for s in streams if s.finish_reason is FinishReason.ERROR}
        satisfied = {s for s in streams if s.finish_reason is FinishReason.LENGTH and not s.max_tokens}
        assert not advanced & self.masks.held
        assert set(streams) <= advanced | set(preempted) | stuck | satisfied | self.masks.held, (
            "a running stream waited for somebody's prompt"
        )
        assert all(s.num_tokens == length for s, length in paused.items())
        assert all(s.deadline > began for s in self.live)
        return result

    @property
    def live(self) -> list[Sequence]:
        return [s for s in self.sequences if s.finish_reason is None]

    @invariant()
    def everything_is_whole(self) -> None:
        scheduler = self.core.scheduler
        self.core.kv_cache.check_integrity(scheduler.running)
        assert len(scheduler.running) <= SPEC.max_num_seqs
        assert sorted(s.sequence_id for s in [*scheduler.running, *scheduler.waiting]) == [
            s.sequence_id for s in self.live
        ]
        for tenant, account in scheduler.waiting._tenants.items():
            waiting = [s for s in scheduler.waiting if s.tenant == tenant]
            assert (account.num_waiting, account.num_waiting_tokens) == (
                len(waiting),
                sum(s.num_output_tokens + 1 if s.parent else s.num_tokens for s in waiting),
            )
        self.ended.update(s.sequence_id for s in scheduler.take_ended())
        assert self.ended == Counter(s.sequence_id for s in self.sequences if s.finish_reason is not None)

    def teardown(self) -> None:
        if not hasattr(self, "core"):
            return
        for patched in self.patches:
            patched.stop()
        self.masks.slow.clear()
        for sequence in self.sequences:
            sequence.paused = False
        # Each step computes a token at least; what is preempted is computed again, by far not so often.
        bound = 4 * sum(s.max_len for s in self.live)
        num_steps = 0
        while self.live:
            assert self.checked_step().output.chunks or not self.live, "work is left and nothing runs"
            self.everything_is_whole()
            num_steps += 1
            assert num_steps <= bound, "somebody starves"
        self.everything_is_whole()
        self.masks.close()
        assert self.core.kv_cache.num_used == 0
        for sequence in self.sequences:
            self.check_output(sequence)

    def check_output(self, sequence: Sequence) -> None:
        output = sequence.token_ids[sequence.num_prompt_tokens :]
        expected = alone(sequence, self.sampler, self.next_logits)
        assert output == expected.output[: len(output)]
        assert sequence.log_probs == expected.log_probs[: len(output)]
        assert sequence.prompt_log_probs == expected.prompt_log_probs[: len(sequence.prompt_log_probs)]
        assert not output or len(sequence.prompt_log_probs) == len(expected.prompt_log_probs)
        assert sequence.num_accepted_tokens <= sequence.num_draft_tokens
        reason = sequence.finish_reason
        if sequence in self.asked:
            assert reason is (FinishReason.STOP if sequence.stop_reason else FinishReason.CANCELLED)
        elif reason in {FinishReason.EOS, FinishReason.STOP, FinishReason.LENGTH}:
            assert (output, reason, sequence.stop_reason) == (expected.output, expected.reason, expected.stop_reason)
        ended = output == expected.output and sequence not in self.asked
        if expected.reason is FinishReason.ERROR and ended:
            assert sequence.error is not None
        assert sequence.num_hidden_tail_tokens == (expected.num_hidden_tail_tokens if output == expected.output else 0)
        is_unseen = output and output[-1] in sequence.end_ids | sequence.stop_ids
        followers: list[Any] = [sequence.stop_strings, sequence.guide]
        for follower in followers:
            assert follower is None or follower.seen == (output[:-1] if is_unseen else output)

    @staticmethod
    def next_logits(context: list[int]) -> HostLogits:
        """What the timed engine computes."""
        logits = np.zeros((1, SPEC.vocab_size), np.float32)
        logits[0, next_token(np.array(context, np.int64), 1009) % SPEC.vocab_size] = 1.0
        return HostLogits(logits, NumpyKernels())


class SlotHistories(Histories):
    """The same where every sequence has a slot: as many as run at once, or some to keep what has been."""

    specs = SLOTS, replace(SLOTS, num_blocks=7)


Histories.TestCase.settings = settings(max_examples=70, stateful_step_count=40, deadline=None, print_blob=True)
SlotHistories.TestCase.settings = settings(max_examples=70, stateful_step_count=40, deadline=None, print_blob=True)
TestHistories = Histories.TestCase
TestSlotHistories = SlotHistories.TestCase
