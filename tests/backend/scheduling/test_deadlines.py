"""Deadlines: kept in any state, refused at once when they cannot be met, and felt by nobody else."""

from __future__ import annotations

import gc
import itertools
import math
import time
import weakref
from dataclasses import replace

import pytest

from tests.fakes.core import SPEC, Clock, add, expected_output, linear, make_core, make_sequence, run_to_end
from trident_backend.core import EngineCore
from trident_backend.engine.mock import MockEngine
from trident_backend.scheduling.deadlines import Deadlines
from trident_backend.sequences.sequence import FinishReason, Sequence
from trident_backend.serving.events import Command, TokenEvent
from trident_backend.serving.loop import EngineLoop
from trident_ensemble.contract.errors import CancelledError, DeadlineError, TooLateError
from trident_ensemble.contract.settings import BatchSchedulerPolicy, CoreSettings


def _due(sequence_id: int, seconds: float, clock: Clock, prompt: list[int], max_tokens: int = 30) -> Sequence:
    return make_sequence(sequence_id, prompt, max_tokens, arrived_at=clock(), deadline=clock() + seconds)


def test_deadlines_a_running_one_expires_frees_its_room_and_says_how_far_it_came() -> None:
    core, clock = make_core()
    late, other = _due(0, 0.055, clock, [1] * 8), make_sequence(1, [2] * 8, 30)
    add(core, late, other)
    run_to_end(core)
    assert late.finish_reason is FinishReason.TIMEOUT
    assert isinstance(late.error, DeadlineError)
    assert str(late.error) == "timeout_ms: 55 ms have passed, with 6 tokens generated"
    assert late.token_ids[8:] == expected_output(late)[:6]
    assert core.scheduler.take_ended() == [late, other]
    assert other.token_ids[8:] == expected_output(other)
    assert core.kv_cache.num_used == 0


def test_deadlines_a_waiting_one_expires_without_having_run() -> None:
    core, clock = make_core()
    holders = [make_sequence(i, [i] * 8, 32) for i in range(2)]
    late = _due(9, 0.1, clock, [1] * 8, 40)
    behind = make_sequence(10, [3] * 4, 8)
    add(core, *holders, late, behind)
    for _ in range(12):
        core.step()
    assert str(late.error) == "timeout_ms: 100 ms have passed, waiting"
    assert late.first_scheduled_at is None
    assert core.scheduler.take_ended() == [late]
    assert behind.first_scheduled_at == pytest.approx(0.1, abs=0.011), "it no longer waits behind the one that has gone"


def test_deadlines_a_preempted_or_paused_one_expires_too() -> None:
    core, clock = make_core(CoreSettings(batch_scheduler_policy=BatchSchedulerPolicy.MAX_UTILIZATION))
    old = make_sequence(0, [1] * 4, 58)
    young = make_sequence(1, [2] * 4, 58, deadline=0.5)
    add(core, old, young)
    run_to_end(core)
    assert young.num_preemptions == 1
    assert str(young.error) == f"timeout_ms: 500 ms have passed, with {young.num_output_tokens} tokens generated"
    paused = _due(2, 0.2, clock, [3])
    paused.paused = True
    add(core, paused)
    core.step()
    clock.now += 0.2
    core.step()
    assert isinstance(paused.error, DeadlineError)
    assert core.kv_cache.num_used == 0


def test_deadlines_one_that_ends_in_time_has_its_whole_answer() -> None:
    core, clock = make_core()
    in_time = _due(0, 0.05, clock, [1], 5)
    add(core, in_time)
    run_to_end(core)
    clock.now += 1
    core.step()
    assert (in_time.finish_reason, in_time.error) == (FinishReason.LENGTH, None)
    assert core.scheduler.next_deadline == math.inf


def _taught() -> tuple[EngineCore, Clock]:
    """A core that knows that a step takes 10 ms and a token one more."""
    core, clock = make_core(CoreSettings(enable_kv_cache_reuse=False), seconds=linear(0.01, 0.001))
    add(core, *[make_sequence(i, [i] * (3 + 4 * i), 20) for i in range(6)])
    run_to_end(core)
    assert core.step_times.fitted is not None
    core.scheduler.take_ended()
    return core, clock


def test_deadlines_what_cannot_be_met_is_refused_at_once() -> None:
    """40 tokens at 16 a step take 65 ms at least, and 70 where the last step is not full."""
    core, clock = _taught()
    busy = make_sequence(9, [3], 1, arrived_at=clock())
    hopeless, tight = _due(10, 0.06, clock, [1] * 40, 1), _due(11, 0.09, clock, [2] * 40, 1)
    add(core, busy, hopeless, tight)
    assert core.scheduler.take_ended() == [hopeless]
    assert (hopeless.finish_reason, type(hopeless.error)) == (FinishReason.REFUSED, TooLateError)
    assert "timeout_ms: 60 ms cannot be met" in str(hopeless.error)
    assert set(core.scheduler.waiting) == {busy, tight}
    run_to_end(core)
    assert tight.finish_reason is FinishReason.LENGTH


def test_deadlines_what_is_usually_found_in_the_cache_does_not_count() -> None:
    core, clock = make_core(seconds=linear(0.01, 0.001))
    common = [7] * 36
    for number in range(80):
        add(core, make_sequence(number, [*common, number, 1, 2, 3], 2, arrived_at=clock()))
        run_to_end(core)
    quick = _due(100, 0.03, clock, [*common, 90, 1, 2, 3], 2)
    add(core, quick)
    run_to_end(core)
    assert (quick.finish_reason, quick.error) == (FinishReason.LENGTH, None)


def test_deadlines_what_waits_before_it_counts_but_not_what_goes_after_it() -> None:
    core, clock = _taught()
    crowd = [make_sequence(20 + i, [i] * 40, 4, arrived_at=clock()) for i in range(10)]
    add(core, *crowd)
    behind, other = _due(40, 0.3, clock, [1] * 8, 4), _due(41, 0.3, clock, [2] * 8, 4)
    other.tenant = "other"
    urgent = _due(42, 0.3, clock, [3] * 8, 4)
    urgent.priority = -50
    add(core, behind, other, urgent)
    assert core.scheduler.take_ended() == [behind], "400 tokens of its own tenant take 650 ms"
    run_to_end(core)
    assert (other.error, urgent.error) == (None, None)


def test_deadlines_before_speeds_are_known_nothing_is_refused() -> None:
    core, clock = make_core(seconds=linear(1.0, 1.0))
    hopeful = _due(0, 0.001, clock, [1] * 40)
    add(core, hopeful)
    assert hopeful.finish_reason is None
    clock.now += 0.001
    core.step()
    assert str(hopeful.error) == "timeout_ms: 1 ms have passed, waiting"


def test_deadlines_the_nearest_is_next_and_what_has_ended_is_not_kept() -> None:
    """A client that asks with a timeout of a day must not have each of its requests remembered for a day."""
    deadlines = Deadlines()
    assert deadlines.next == math.inf
    due = [make_sequence(i, [1], 1, deadline=float(when)) for i, when in enumerate([5, 3, 9])]
    for sequence in due:
        deadlines.add(sequence)
    assert deadlines.next == 3
    due[1].finish_reason = FinishReason.LENGTH
    assert deadlines.next == 5
    assert deadlines.take_passed(8.9) == [due[0]]
    assert deadlines.take_passed(9.0) == [due[2]]
    gone: list[weakref.ref[Sequence]] = []
    waiting = make_sequence(3, [1], 1, deadline=50.0)
    deadlines.add(waiting)
    for number in range(4, 1000):
        sequence = make_sequence(number, [1], 1, deadline=86_400.0)
        gone.append(weakref.ref(sequence))
        deadlines.add(sequence)
        sequence.finish_reason = FinishReason.LENGTH
    del sequence
    gc.collect()
    assert sum(reference() is not None for reference in gone) == 0, "however few they are"
    assert deadlines.next == waiting.deadline


@pytest.mark.parametrize("paused", [False, True], ids=["waiting for room", "paused"])
def test_deadlines_an_idle_loop_wakes_by_itself(paused: bool) -> None:
    """Nothing runs and nobody asks for anything, so that only the deadline can wake it."""
    events: list[TokenEvent] = []
    died: list[BaseException] = []
    core = EngineCore(MockEngine(SPEC), CoreSettings(), time.monotonic)
    loop = EngineLoop(core, events.extend, lambda _: None, died.append)
    holder = make_sequence(0, [1] * 8, 56, paused=True)
    began = time.monotonic()
    late = make_sequence(1, [2] * 8, 56, arrived_at=began, deadline=began + 0.15, paused=paused)
    loop.tell(Command.ADD, holder)
    loop.tell(Command.ADD, late)
    loop.start()
    try:
        while not events:
            assert time.monotonic() < began + 60, "it sleeps on"
            time.sleep(0.005)
        waited = time.monotonic() - began
    finally:
        loop.stop()
    assert not died
    (event,) = [event for event in events if event.sequence_id == 1]
    assert isinstance(event.error, DeadlineError)
    assert (event.num_tokens, event.finish_reason) == (0, FinishReason.TIMEOUT)
    assert waited >= 0.15
    assert not isinstance(late.error, CancelledError)


def test_deadlines_a_slow_hour_is_not_held_against_the_engine_for_ever() -> None:
    slowness = [1.0]
    core, clock = make_core(CoreSettings(), seconds=lambda size: slowness[0] * (0.01 + 0.0005 * size.num_tokens))
    numbers = itertools.count()

    def num_served(count: int, timeout: float) -> int:
        served = 0
        for _ in range(count):
            number = next(numbers)
            arrived = clock()
            sequence = make_sequence(number, [number % 97] * 20, 6, arrived_at=arrived, deadline=arrived + timeout)
            add(core, sequence)
            run_to_end(core)
            served += sequence.error is None
        return served

    assert num_served(20, 0.5) == 20
    slowness[0] = 30.0
    num_served(40, 60.0)
    slowness[0] = 1.0
    assert num_served(50, 0.5) == 50


def test_deadlines_what_the_cache_has_of_a_prompt_takes_no_time() -> None:
    spec = replace(SPEC, max_seq_len=256, num_blocks=256)
    core, clock = make_core(CoreSettings(), spec, linear(0.001, 0.001))
    for number in range(30):
        add(core, make_sequence(number, [number] * 20, 4, arrived_at=clock()))
        run_to_end(core)
    conversation = list(range(90)) * 2
    add(core, make_sequence(100, conversation, 4, arrived_at=clock()))
    run_to_end(core)
    add(core, make_sequence(101, [96] * 8, 40, arrived_at=clock()))
    core.step()
    again = make_sequence(102, [*conversation, 7], 2, arrived_at=clock(), deadline=clock() + 0.1)
    other = make_sequence(103, [95, *conversation], 2, arrived_at=clock(), deadline=clock() + 0.1)
    add(core, again, other)
    assert (again.finish_reason, other.finish_reason) == (None, FinishReason.REFUSED)
    run_to_end(core)
    assert again.finish_reason is FinishReason.LENGTH
