"""What is measured against what an onlooker of the same run sees, with exact times from a simulated clock."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import replace

import pytest

from tests.fakes.core import SPEC, Client, Clock, TimedEngine, linear, make_sequence
from tests.fakes.serving import serving, until
from trident_backend.core import EngineCore
from trident_backend.engine.mock import MockEngine
from trident_backend.metrics.records import RequestRecord, StepRecord
from trident_backend.sequences.sequence import FinishReason, Sequence
from trident_backend.serving.events import Command, TokenEvent
from trident_backend.serving.loop import EngineLoop
from trident_ensemble.contract.settings import BatchSchedulerPolicy, CoreSettings

STEP = 0.01


class Onlooker:
    """A loop on simulated time, and everything it tells."""

    def __init__(self, settings: CoreSettings, vocab_size: int = SPEC.vocab_size) -> None:
        self.clock = Clock()
        engine = TimedEngine(replace(SPEC, vocab_size=vocab_size), self.clock, linear(STEP, 0.0))
        self.events: list[tuple[float, list[TokenEvent]]] = []
        self.records: list[StepRecord | RequestRecord] = []
        self.died: list[BaseException] = []
        core = EngineCore(engine, settings, self.clock)
        self.loop = EngineLoop(core, self._emit, self.records.append, self.died.append)

    def _emit(self, events: list[TokenEvent]) -> None:
        self.events.append((self.clock.now, events))

    def run(self, sequences: list[Sequence]) -> None:
        """All of them, added at once, to their ends."""
        for sequence in sequences:
            self.loop.tell(Command.ADD, sequence)
        self.loop.start()
        until(lambda: self.died or all(s.finish_reason is not None for s in sequences))
        self.loop.stop()
        assert not self.died

    @property
    def steps(self) -> list[StepRecord]:
        return [record for record in self.records if isinstance(record, StepRecord)]

    @property
    def requests(self) -> list[RequestRecord]:
        return [record for record in self.records if isinstance(record, RequestRecord)]


def test_records_one_request_alone_is_measured_exactly() -> None:
    """20 tokens at 16 a step, then 5 at one a step."""
    onlooker = Onlooker(CoreSettings())
    onlooker.run([make_sequence(1, list(range(20)), 5)])
    (request,) = onlooker.requests
    assert request.finish_reason is FinishReason.LENGTH
    assert (request.num_input_tokens, request.num_output_tokens, request.num_cached_tokens) == (20, 5, 0)
    assert request.queue_seconds == 0.0
    assert request.first_token_seconds == pytest.approx(2 * STEP)
    assert request.latency_seconds == pytest.approx(6 * STEP)
    assert [step.num_tokens for step in onlooker.steps] == [16, 4, 1, 1, 1, 1]
    assert [step.num_context_tokens for step in onlooker.steps] == [16, 4, 0, 0, 0, 0]
    assert [step.seconds for step in onlooker.steps] == [pytest.approx(STEP)] * 6
    assert [step.gaps for step in onlooker.steps] == [(), ()] + [((pytest.approx(STEP), 1),)] * 4


def test_records_gaps_are_the_intervals_between_token_events() -> None:
    """With preemptions and draft tokens, so that gaps are long, and several tokens come at once; equals count once."""
    settings = CoreSettings(batch_scheduler_policy=BatchSchedulerPolicy.MAX_UTILIZATION, max_draft_tokens=3)
    onlooker = Onlooker(settings, vocab_size=3)
    sequences = [make_sequence(i, [i % 3, 1, 2, i % 2], 58) for i in range(12)]
    onlooker.run(sequences)
    last: dict[int, float] = {}
    seen: Counter[float] = Counter()
    num_at_once: set[int] = set()
    for now, events in onlooker.events:
        for event in events:
            num_tokens = event.num_tokens
            if num_tokens and event.sequence_id in last:
                seen[round((now - last[event.sequence_id]) / num_tokens, 9)] += num_tokens
                num_at_once.add(num_tokens)
            if num_tokens:
                last[event.sequence_id] = now
    recorded: Counter[float] = Counter()
    for step in onlooker.steps:
        assert len({gap for gap, _ in step.gaps}) == len(step.gaps)
        for gap, num_tokens in step.gaps:
            recorded[round(gap, 9)] += num_tokens
    assert recorded == seen
    assert max(num_at_once) > 1
    assert max(seen) > 5 * STEP
    assert sum(step.num_preempted for step in onlooker.steps) == sum(r.num_preemptions for r in onlooker.requests) > 0
    assert sum(r.num_accepted_tokens for r in onlooker.requests) > 0
    # Each token but each sequence's first stands behind some gap.
    assert sum(number for step in onlooker.steps for _, number in step.gaps) == 12 * 57


def test_records_every_end_has_one_record() -> None:
    onlooker = Onlooker(CoreSettings())
    whole, late, refused = make_sequence(1, [1], 9), make_sequence(2, [2], 50, deadline=0.2), make_sequence(3, [3], 9)
    refused.deadline = -1.0
    hasty = make_sequence(4, [4], 9)
    onlooker.loop.tell(Command.ABORT, hasty)
    onlooker.run([whole, late, refused, hasty])
    ends = Counter((r.num_input_tokens, r.finish_reason.value, r.num_output_tokens) for r in onlooker.requests)
    assert sum(ends.values()) == 4
    assert ends[1, "length", 9] == 1
    assert ends[1, "timeout", late.num_output_tokens] == 1
    assert ends[1, "refused", 0] == 1
    assert ends[1, "cancelled", 0] == 1
    told = Counter(e.sequence_id for _, events in onlooker.events for e in events if e.finish_reason is not None)
    assert told == {1: 1, 2: 1, 3: 1, 4: 1}, "each end is told once, with the last tokens if it came with any"
    assert all(r.queue_seconds is None for r in onlooker.requests if not r.num_output_tokens)


def test_records_one_record_for_each_request_of_the_service_whatever_its_end() -> None:
    engine = MockEngine(SPEC, step_seconds=0.02)
    with serving(engine) as service:
        clients = [Client() for _ in range(12)]
        clients[1].cancelled = True
        for number, client in enumerate(clients):
            timeout = {"timeout_ms": 30} if number % 4 == 2 else {}
            # The client that leaves asks for so much that it cannot be served before it is missed.
            fields = {"input_ids": [number], "max_tokens": 63 if client.cancelled else 30}
            service.submit({**fields, **timeout}, client)
        assert clients[1].done.wait(60)
        engine.fail_next = True
        assert all(client.done.wait(60) for client in clients)
        held = [Client() for _ in range(6)]
        for client in held:
            service.submit({"input_ids": [1], "max_tokens": 60}, client)
        until(lambda: service.stats.num_running > 0)
        time.sleep(0.02)
    assert all(client.done.wait(60) for client in held)
    records = service.take_records()
    requests = [record for record in records if isinstance(record, RequestRecord)]
    assert len(requests) == 12 + 6
    assert not service.take_records()
    reasons = Counter(request.finish_reason for request in requests)
    assert reasons[FinishReason.LENGTH] == sum(not client.errors for client in clients) > 0
    assert reasons[FinishReason.CANCELLED] == 1 + 6, "the client that left, and all that the end of the server found"
    assert sum(reasons[reason] for reason in (FinishReason.TIMEOUT, FinishReason.REFUSED, FinishReason.ERROR)) >= 3
    assert reasons[FinishReason.TIMEOUT] > 0
    for request in requests:
        first, queue, latency = request.first_token_seconds, request.queue_seconds, request.latency_seconds
        assert latency >= 0
        assert queue is None or 0 <= queue <= latency
        assert first is None or (queue is not None and queue < first <= latency)
        assert (first is None) == (request.num_output_tokens == 0)
    steps = [record for record in records if isinstance(record, StepRecord)]
    assert len(steps) == service.stats.num_steps == engine.num_steps
