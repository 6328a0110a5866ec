"""What the loop does while the engine computes, and what it leaves until the step has been collected."""

from __future__ import annotations

import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fakes.core import SPEC, Client, expected_tokens, make_sequence
from tests.fakes.serving import serving, until
from trident_backend.core import EngineCore
from trident_backend.engine.host_logits import HostLogits
from trident_backend.engine.mock import MockEngine
from trident_backend.engine.protocol import StepBatch
from trident_backend.metrics.records import RequestRecord, StepRecord
from trident_backend.sequences.sequence import FinishReason, Sequence
from trident_backend.sequences.steps import StepResult
from trident_backend.serving.events import Command, TokenEvent
from trident_backend.serving.loop import EngineLoop
from trident_ensemble.contract.errors import DrainingError, EngineError
from trident_ensemble.contract.settings import BatchSchedulerPolicy, CoreSettings

Hook = Callable[[int], None]


class HookedEngine(MockEngine):
    """A mock engine that calls back, on the loop's thread, with the number of each step submitted or collected."""

    def __init__(self, on_submitted: Hook, on_collect: Hook) -> None:
        super().__init__(SPEC)
        self._on_submitted = on_submitted
        self._on_collect = on_collect

    def submit(self, batch: StepBatch) -> None:
        super().submit(batch)
        self._on_submitted(self.num_steps)

    def collect(self) -> HostLogits:
        self._on_collect(self.num_steps)
        return super().collect()


def _nothing(_number: int) -> None:
    return


class Run:
    """A loop on a hooked engine, and everything that it tells, in order."""

    def __init__(self, on_submitted: Hook = _nothing, on_collect: Hook = _nothing, **fields: Any) -> None:
        self.log: list[tuple[str, int]] = []
        self.events: list[TokenEvent] = []
        self.told: defaultdict[int, list[int]] = defaultdict(list)
        self._sequences: dict[int, Sequence] = {}
        self.records: list[StepRecord | RequestRecord] = []
        self.died: list[BaseException] = []

        def submitted(number: int) -> None:
            self.log.append(("submit", number))
            on_submitted(number)

        def collect(number: int) -> None:
            self.log.append(("collect", number))
            on_collect(number)

        self.engine = HookedEngine(submitted, collect)
        self.core = EngineCore(self.engine, CoreSettings(**fields), time.monotonic)
        self.loop = EngineLoop(self.core, self._emit, self.records.append, self.died.append)

    def _emit(self, events: list[TokenEvent]) -> None:
        for event in events:
            sequence, told = self._sequences[event.sequence_id], self.told[event.sequence_id]
            begin = sequence.num_prompt_tokens + len(told)
            new = sequence.token_ids[begin : begin + event.num_tokens]
            told.extend(new)
            self.log.extend(("emit", token_id) for token_id in new)
        self.events.extend(events)

    def add(self, sequence: Sequence) -> None:
        """Add a sequence to the loop."""
        self._sequences[sequence.sequence_id] = sequence
        self.loop.tell(Command.ADD, sequence)

    def play(self, *sequences: Sequence, resumes: bool = False) -> None:
        """Run sequences to their ends.

        Args:
            sequences: to add.
            resumes: whether paused ones are resumed again and again.
        """
        for sequence in sequences:
            self.add(sequence)
        self.loop.start()

        def is_over() -> bool:
            left = [sequence for sequence in sequences if sequence.finish_reason is None]
            for sequence in left if resumes else ():
                self.loop.tell(Command.RESUME, sequence)
            return bool(self.died) or not left

        until(is_over)
        self.loop.stop()
        self.core.close()
        assert not self.died


def test_loop_events_of_a_step_leave_while_the_engine_computes_the_next() -> None:
    run = Run()
    run.play(make_sequence(1, [5, 6], 3))
    first, second, third = expected_tokens([5, 6], 3)
    assert run.log == [
        ("submit", 1), ("collect", 1),
        ("submit", 2), ("emit", first), ("collect", 2),
        ("submit", 3), ("emit", second), ("collect", 3),
        ("emit", third),
    ]  # fmt: skip
    assert [isinstance(record, StepRecord) for record in run.records] == [True, True, True, False]


def test_loop_a_sequence_is_added_while_the_engine_computes() -> None:
    second = make_sequence(2, [9], 4)
    waiting: list[bool] = []

    def submitted(number: int) -> None:
        if number == 2:
            run.add(second)

    def collect(number: int) -> None:
        if number == 2:
            waiting.append(second in run.core.scheduler.waiting)

    run = Run(submitted, collect)
    run.play(make_sequence(1, [5, 6], 9))
    assert waiting == [True]
    assert second.token_ids[1:] == expected_tokens([9], 4)


def test_loop_what_comes_when_there_is_no_step_to_compute_is_not_waited_for_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A sequence, then the wish to end, each between the loop's look for work and its wait for messages."""
    run = Run()
    first, second = make_sequence(1, [5, 6], 3), make_sequence(2, [7], 3)
    report, left = run.loop._report, [first, second]

    def reporting(result: StepResult | None) -> None:
        report(result)
        if left and left[0].finish_reason is not None:
            left.pop(0)
            if left:
                run.add(second)
            else:
                run.loop._stopping = True
                run.loop._inbox.put(None)

    monkeypatch.setattr(run.loop, "_report", reporting)
    run.add(first)
    run.loop.start()
    run.loop._thread.join(60)
    assert not run.loop._thread.is_alive()
    assert not run.died
    assert second.token_ids[1:] == expected_tokens([7], 3)


@pytest.mark.parametrize("command", [Command.ABORT, Command.STOP])
def test_loop_an_end_that_is_asked_for_while_the_engine_computes_waits_for_the_step(command: Command) -> None:
    """The engine writes to the sequence's blocks, which nobody else may get meanwhile."""
    sequence = make_sequence(1, [5, 6], 9)
    seen: list[tuple[FinishReason | None, int]] = []

    def submitted(number: int) -> None:
        if number == 3:
            run.loop.tell(command, sequence)

    def collect(number: int) -> None:
        if number == 3:
            seen.append((sequence.finish_reason, run.core.kv_cache.num_used))

    run = Run(submitted, collect)
    run.play(sequence)
    assert seen == [(None, 1)]
    assert sequence.finish_reason is FinishReason.CANCELLED
    assert sequence.token_ids[2:] == expected_tokens([5, 6], 3), "the step's token counts"
    assert run.told[sequence.sequence_id] == sequence.token_ids[2:]
    assert run.core.kv_cache.num_used == 0


_LATER = [command for command in Command if command is not Command.ADD]
#: A command for one of the sequences, when a step of a number has been submitted or is about to be collected.
_COMMANDS = st.tuples(st.integers(1, 25), st.booleans(), st.sampled_from(_LATER), st.integers(0, 6))


@settings(max_examples=40, deadline=None)
@given(st.lists(_COMMANDS, max_size=25), st.sampled_from(BatchSchedulerPolicy), st.integers(0, 3))
def test_loop_commands_at_any_time_leave_each_sequence_with_one_end_and_its_own_tokens(
    commands: list[tuple[int, bool, Command, int]], policy: BatchSchedulerPolicy, max_draft_tokens: int
) -> None:
    sequences = [make_sequence(number, [number, 3], 12 + number) for number in range(7)]

    def tell(number: int, *, is_submitted: bool) -> None:
        for step, early, command, index in commands:
            if (step, early) == (number, is_submitted):
                run.loop.tell(command, sequences[index])

    run = Run(
        lambda number: tell(number, is_submitted=True),
        lambda number: tell(number, is_submitted=False),
        batch_scheduler_policy=policy,
        max_draft_tokens=max_draft_tokens,
    )
    run.play(*sequences, resumes=True)
    run.core.kv_cache.check_integrity(())
    ends = Counter(event.sequence_id for event in run.events if event.finish_reason is not None)
    assert ends == {sequence.sequence_id: 1 for sequence in sequences}
    for sequence in sequences:
        told = run.told[sequence.sequence_id]
        prompt = sequence.token_ids[:2]
        assert told == sequence.token_ids[2:] == expected_tokens(prompt, len(told))
        assert (len(told) == sequence.max_tokens) or sequence.finish_reason is FinishReason.CANCELLED


def test_loop_a_step_that_cannot_begin_ends_its_sequences_alone() -> None:
    def submitted(number: int) -> None:
        if number == 2:
            run.engine.close()  # as if nothing had been submitted
            raise EngineError("the arrays are refused")

    run = Run(submitted)
    first, second = make_sequence(1, [5, 6], 9), make_sequence(2, [7], 4)
    run.add(first)
    run.loop.start()
    until(lambda: first.finish_reason is not None)
    run.add(second)
    until(lambda: second.finish_reason is not None)
    run.loop.stop()
    assert not run.died
    assert first.finish_reason is FinishReason.ERROR
    assert isinstance(first.error, EngineError)
    assert second.token_ids[1:] == expected_tokens([7], 4)


def test_loop_a_loop_that_is_stopped_emits_its_last_step_and_ends_the_rest() -> None:
    sequence = make_sequence(1, [5, 6], 50)

    def collect(number: int) -> None:
        if number == 4:
            threading.Thread(target=stop).start()
            assert is_stopping.wait(60)

    def stop() -> None:
        run.loop._inbox.put(None)
        run.loop._stopping = True
        is_stopping.set()

    is_stopping = threading.Event()
    run = Run(on_collect=collect)
    run.add(sequence)
    run.loop.start()
    run.loop._thread.join(60)
    assert not run.loop._thread.is_alive()
    assert run.told[sequence.sequence_id] == expected_tokens([5, 6], 4)
    assert isinstance(sequence.error, DrainingError)
    assert run.loop.stats().num_steps == 4


def test_loop_statistics_are_counted_when_asked_for_and_not_by_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    num_looks = 0
    look = EngineLoop._look

    def counting(loop: EngineLoop) -> Any:
        nonlocal num_looks
        num_looks += 1
        return look(loop)

    monkeypatch.setattr(EngineLoop, "_look", counting)
    with serving(MockEngine(SPEC)) as service:
        client = Client()
        service.submit({"input_ids": [1], "max_tokens": 50}, client)
        assert client.done.wait(60)
        assert num_looks == 1, "when it began"
        until(lambda: service.stats.num_steps == 50)
    assert service.stats.num_free_blocks == SPEC.num_blocks


def test_loop_statistics_are_answered_while_the_engine_computes() -> None:
    stats: list[int] = []
    asked = threading.Event()

    def submitted(number: int) -> None:
        if number == 2:
            thread.start()
            until(lambda: not run.loop._inbox.empty())

    def ask() -> None:
        stats.append(run.loop.stats().num_running)
        asked.set()

    def collect(number: int) -> None:
        if number == 2:
            assert asked.wait(0.9), "before a step has ended"

    thread = threading.Thread(target=ask)
    run = Run(submitted, collect)
    run.play(make_sequence(1, [5, 6], 3))
    thread.join()
    assert stats == [1]


def test_loop_statistics_of_a_loop_that_does_not_answer_are_the_last_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trident_backend.serving.loop._STATS_S", 0.05)
    is_stuck, may_go_on = threading.Event(), threading.Event()

    def collect(number: int) -> None:
        if number == 2:
            is_stuck.set()
            assert may_go_on.wait(60)

    run = Run(on_collect=collect)
    run.add(make_sequence(1, [5, 6], 3))
    run.loop.start()
    assert is_stuck.wait(60)
    assert run.loop.stats().num_steps == 0
    may_go_on.set()
    run.loop.stop()
    assert not run.died


def test_loop_what_a_step_resulted_in_leaves_before_an_unforeseen_failure_of_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = Run()
    submit = run.core.submit

    def failing() -> Any:
        if run.engine.num_steps == 2:
            raise MemoryError
        return submit()

    monkeypatch.setattr(run.core, "submit", failing)
    run.add(make_sequence(1, [5, 6], 9))
    run.loop.start()
    until(lambda: run.died)
    assert run.told[1] == expected_tokens([5, 6], 2)
    run.core.close()
