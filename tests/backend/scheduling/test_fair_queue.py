"""Shares of tenants, the order within a tenant, and what idle tenants leave behind; on an engine of simulated time."""

from __future__ import annotations

import gc
import itertools
import weakref
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fakes.core import SPEC, add, make_core, make_sequence, run_to_end
from trident_backend.core import EngineCore
from trident_backend.scheduling.fair_queue import FairQueue
from trident_backend.sequences.sequence import FinishReason, Sequence
from trident_ensemble.contract.errors import CancelledError
from trident_ensemble.contract.settings import BatchSchedulerPolicy, CoreSettings

POLICIES = [CoreSettings(batch_scheduler_policy=policy) for policy in BatchSchedulerPolicy]


def _computed(core: EngineCore, num_steps: int) -> Counter[str]:
    """Tokens of each tenant computed in so many steps."""
    counts: Counter[str] = Counter()
    for _ in range(num_steps):
        before = {s: s.num_computed_tokens for s in core.scheduler.running}
        for sequence, num_new_tokens, _, draft_ids, _ in core.step().output.chunks:
            assert not draft_ids
            assert before.get(sequence, 0) <= sequence.num_computed_tokens
            counts[sequence.tenant] += num_new_tokens
    return counts


@pytest.mark.parametrize("lengths", [(8, 8), (30, 6), (6, 30)], ids=str)
def test_fair_queue_backlogged_tenants_get_tokens_by_their_weights(lengths: tuple[int, int]) -> None:
    """Three to one, whatever the sizes of their requests."""
    spec = replace(SPEC, max_num_seqs=8, num_blocks=96)
    core, _ = make_core(CoreSettings(tenant_weights=(("rich", 3.0),), enable_kv_cache_reuse=False), spec)
    for number in range(0, 2400, 2):
        add(core, make_sequence(number, [1] * lengths[0], 4, tenant="rich"))
        add(core, make_sequence(number + 1, [1] * lengths[1], 4, tenant="other"))
    counts = _computed(core, 500)
    assert {s.tenant for s in core.scheduler.waiting} == {"rich", "other"}, "both still have something waiting"
    assert counts["rich"] / counts["other"] == pytest.approx(3.0, rel=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("settings", POLICIES, ids=lambda s: s.batch_scheduler_policy.value)
@pytest.mark.parametrize("name", ["a", "z"])
def test_fair_queue_a_flood_delays_another_tenants_first_token_by_one_place(settings: CoreSettings, name: str) -> None:
    """The bound: what is left of the flood's request that ends next (nobody is interrupted), and one step of its own.

    200 requests of 12 steps each run four at a time, their ends a few steps apart.
    """

    def first_token(num_before: int) -> float:
        core, clock = make_core(settings)
        for number in range(num_before):
            add(core, make_sequence(number, [number % 97] * 8, 12, tenant="m", arrived_at=clock()))
        for _ in range(40):
            core.step()
        arrived = clock()
        single = make_sequence(1000, [5] * 8, 4, tenant=name, arrived_at=arrived)
        add(core, single)
        run_to_end(core)
        assert single.first_token_at is not None
        return single.first_token_at - arrived

    step = 0.01
    assert first_token(0) == pytest.approx(step)
    assert first_token(200) <= (12 + 2) * step, "200 requests before it, of its own tenant, would be some 600 steps"


def test_fair_queue_an_idle_tenant_earns_no_credit() -> None:
    core, _ = make_core(replace(POLICIES[0], enable_kv_cache_reuse=False), replace(SPEC, max_num_seqs=8, num_blocks=96))
    add(core, make_sequence(0, [1] * 8, 4, tenant="sleeper"))
    for number in range(1, 1000):
        add(core, make_sequence(number, [1] * 8, 4, tenant="busy"))
    _computed(core, 200)
    for number in range(1000, 2000):
        add(core, make_sequence(number, [1] * 8, 4, tenant="sleeper"))
    counts = _computed(core, 100)
    assert counts["sleeper"] / counts["busy"] == pytest.approx(1.0, rel=0.15)


def test_fair_queue_coming_and_going_does_not_wipe_out_what_was_served() -> None:
    """One who sends its requests one by one gets no more than one who sends all at once."""
    core, _ = make_core(replace(POLICIES[0], enable_kv_cache_reuse=False), replace(SPEC, max_num_seqs=8, num_blocks=96))
    for number in range(1000):
        add(core, make_sequence(number, [1] * 8, 4, tenant="steady"))
    served: Counter[str] = Counter()
    single = make_sequence(5000, [1] * 30, 4, tenant="comes-and-goes")
    add(core, single)
    for number in range(300):
        served += _computed(core, 1)
        if single.finish_reason is not None:
            single = make_sequence(5001 + number, [1] * 30, 4, tenant="comes-and-goes")
            add(core, single)
    assert served["comes-and-goes"] <= served["steady"] * 1.1


def test_fair_queue_what_a_tenant_had_beyond_the_others_is_remembered_until_they_have_had_as_much() -> None:
    queue = FairQueue({"half": 0.5}, aging_seconds=1.0)
    steady, guest = make_sequence(0, [1], 1, tenant="steady"), make_sequence(1, [1], 1, tenant="half")
    queue.enter(steady)
    queue.enter(guest)
    queue.charge("half", 50)
    queue.leave(guest)
    queue.charge("steady", 20)
    queue.enter(guest)
    assert (queue.served("steady"), queue.served("half")) == (20, 100)
    queue.leave(guest)
    queue.charge("steady", 90)
    queue.enter(guest)
    assert queue.served("half") == pytest.approx(50 / 1.5 + 20 + 90), "where the clock stands: it has passed"


@pytest.mark.parametrize("policy", BatchSchedulerPolicy)
def test_fair_queue_newcomers_do_not_pass_who_has_been_served_before(policy: BatchSchedulerPolicy) -> None:
    core, clock = make_core(CoreSettings(batch_scheduler_policy=policy))
    numbers = itertools.count(1)

    def keep_a_backlog() -> None:
        while len(core.scheduler.waiting) < 20:
            number = next(numbers)
            add(core, make_sequence(number, [number % 97] * 8, 4, tenant=f"new {number}", arrived_at=clock()))

    first = make_sequence(0, [1] * 8, 4, tenant="faithful", arrived_at=clock())
    add(core, first)
    while first.finish_reason is None:
        keep_a_backlog()
        core.step()
    second = make_sequence(10**6, [1] * 8, 4, tenant="faithful", arrived_at=clock())
    add(core, second)
    for _ in range(100):
        keep_a_backlog()
        core.step()
    assert second.first_token_at is not None
    assert len(core.scheduler.waiting.tenants()) <= 20
    while core.scheduler.waiting or core.scheduler.running:
        core.step()
    assert not core.scheduler.waiting.tenants()


def test_fair_queue_priority_orders_the_requests_of_a_tenant() -> None:
    core, _ = make_core(CoreSettings(priority_aging_ms=60_000), replace(SPEC, max_num_seqs=1))
    sequences = [make_sequence(i, [i], 3, priority=(0, 5, -5, 0, 1)[i], arrived_at=i * 0.001) for i in range(5)]
    add(core, *sequences)
    run_to_end(core)
    order = sorted(sequences, key=lambda s: s.first_token_at or 0)
    assert [s.sequence_id for s in order] == [2, 0, 3, 4, 1]


@pytest.mark.parametrize("settings", POLICIES, ids=lambda s: s.batch_scheduler_policy.value)
def test_fair_queue_waiting_makes_up_for_priority(settings: CoreSettings) -> None:
    """Level 5 is overtaken by what comes within 5 * 100 ms of it, and by nothing that comes later."""
    core, clock = make_core(replace(settings, priority_aging_ms=100), replace(SPEC, max_num_seqs=1))
    humble = make_sequence(0, [1], 4, priority=5)
    flood = [make_sequence(1, [2], 4)]
    add(core, flood[0])
    core.step()
    add(core, humble)
    while humble.finish_reason is None:
        while len(core.scheduler.waiting) < 20:
            flood.append(make_sequence(len(flood) + 1, [2], 4, arrived_at=clock()))
            add(core, flood[-1])
        core.step()
        assert clock() < 60, "it starves"
    assert humble.first_scheduled_at is not None
    overtook = [
        s for s in flood if s.first_scheduled_at is not None and s.first_scheduled_at < humble.first_scheduled_at
    ]
    assert overtook
    assert max(s.arrived_at for s in overtook) <= 0.5
    assert all(s in overtook for s in flood if s.arrived_at < 0.5)


@pytest.mark.parametrize("settings", POLICIES, ids=lambda s: s.batch_scheduler_policy.value)
def test_fair_queue_new_tenants_without_end_starve_nobody(settings: CoreSettings) -> None:
    """Whoever may choose a tenant's name must not get past others by choosing a new one for each request."""
    core, clock = make_core(settings)
    patient = make_sequence(0, [1] * 8, 8, tenant="z")
    for number in range(1, 20):
        add(core, make_sequence(number, [number] * 8, 8, tenant=f"a{number}"))
    add(core, patient)
    for number in range(20, 400):
        add(core, make_sequence(number, [number % 97] * 8, 8, tenant=f"a{number}", arrived_at=clock()))
        core.step()
        if patient.first_token_at is not None:
            break
    assert number < 100, "19 requests came before it, four run at a time, each for 8 to 9 steps"


@pytest.mark.slow
def test_fair_queue_a_thousand_tenants_that_came_and_went_are_forgotten() -> None:
    core, clock = make_core()
    steady = make_sequence(0, [1], 60, tenant="steady", arrived_at=clock())
    add(core, steady)
    names = []
    for number in range(1, 1001):
        if steady.finish_reason is not None:
            steady = make_sequence(10_000 + number, [1], 60, tenant="steady", arrived_at=clock())
            add(core, steady)
        names.append(f"tenant {number}")
        add(core, make_sequence(number, [number % 97] * 20, 2, tenant=names[-1], arrived_at=clock()))
        for _ in range(3):
            core.step()
    for _ in range(200):
        core.step()
    assert _num_remembered(core.scheduler.waiting, names) < 50
    run_to_end(core)
    assert _num_remembered(core.scheduler.waiting, names) == 0


class _Unseen(dict[str, Any]):
    """Tenants that are found by their names alone."""

    def __iter__(self) -> Iterator[str]:
        raise AssertionError("all tenants are looked at")

    def items(self) -> Any:
        return iter(self)

    def values(self) -> Any:
        return iter(self)


def test_fair_queue_tenants_that_neither_come_nor_go_nor_can_run_are_not_looked_at() -> None:
    """Their names come from clients, so there may be any number of them."""
    core, clock = make_core()
    add(core, *(make_sequence(i, [i], 12, tenant="holder", arrived_at=clock()) for i in range(4)))
    core.step()
    assert len(core.scheduler.running) == SPEC.max_num_seqs
    waiting = [make_sequence(i, [i % 97], 4, tenant=f"tenant {i}", arrived_at=clock()) for i in range(4, 100)]
    add(core, *waiting)
    queue = core.scheduler.waiting
    queue._tenants = _Unseen(queue._tenants)
    for _ in range(3):
        core.step()
    for sequence in waiting[:20]:
        core.scheduler.finish(sequence, FinishReason.CANCELLED, CancelledError("gone"))
    assert len(queue._tenants) == 1 + len(waiting) - 20


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(0, 40)), max_size=120))
def test_fair_queue_who_is_forgotten_is_found_as_by_looking_at_all(steps: list[tuple[str, int]]) -> None:
    """Tenants come, are served and go; an idle one is remembered as long as it is ahead of the clock."""
    queue = FairQueue({"a": 3.0, "b": 0.1}, 1.0)
    opened: dict[str, Sequence] = {}
    for number, (name, num_tokens) in enumerate(steps):
        if name not in opened:
            opened[name] = make_sequence(number, [1], 1, tenant=name)
            queue.enter(opened[name])
        elif num_tokens:
            queue.charge(name, num_tokens)
        else:
            queue.leave(opened.pop(name))
            ahead = {other for other, one in queue._tenants.items() if one.served > queue._clock}
            assert queue._tenants.keys() == (opened.keys() | ahead if opened else set())
        assert len(queue._idle) <= len(queue._tenants)


def _num_remembered(queue: FairQueue, names: list[str]) -> int:
    remembered = 0
    for name in names:
        try:
            queue.served(name)
        except KeyError:
            continue
        remembered += 1
    return remembered


def test_fair_queue_requests_given_up_while_others_wait_leave_nothing_behind() -> None:
    """Clients that come, wait and go, for as long as one request of theirs cannot start."""
    core, clock = make_core()
    holder, stuck = make_sequence(0, [1] * 30, 34), make_sequence(1, [2] * 30, 34)
    blocker = make_sequence(2, [3] * 30, 34)
    add(core, holder, stuck, blocker)
    for sequence in (holder, stuck, blocker):
        sequence.paused = True
    core.step()
    gone: list[weakref.ref[Sequence]] = []
    for number in range(3, 500):
        sequence = make_sequence(number, [4], 4, arrived_at=clock() + number, deadline=1e9)
        gone.append(weakref.ref(sequence))
        add(core, sequence)
        core.scheduler.finish(sequence, FinishReason.CANCELLED, CancelledError("gone"))
        core.scheduler.take_ended()
    del sequence
    gc.collect()
    assert sum(reference() is not None for reference in gone) < 100


def test_fair_queue_tokens_ahead_are_those_that_wait_before_one_of_the_same_tenant() -> None:
    queue = FairQueue({}, aging_seconds=1.0)
    waiting = [make_sequence(i, [1] * (10 + i), 4, arrived_at=float(i), tenant="a") for i in range(3)]
    for sequence in waiting:
        queue.enter(sequence)
        queue.push(sequence)
    last = make_sequence(9, [1], 1, arrived_at=5.0, tenant="a")
    assert queue.num_tokens_ahead(last) == 10 + 11 + 12
    queue.remove(waiting[0])
    assert queue.num_tokens_ahead(last) == 11 + 12
    assert queue.num_tokens_ahead(make_sequence(9, [1], 1, arrived_at=5.0, tenant="b")) == 0
    urgent = make_sequence(9, [1], 1, arrived_at=5.0, tenant="a", priority=-50)
    assert queue.num_tokens_ahead(urgent) == 0, "no more than certain: it is never refused for what it will overtake"
