"""What the two batch scheduler policies promise, and that each mechanism of the scheduler really comes into play."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from tests.fakes.core import SPEC, add, expected_output, linear, make_core, make_sequence, run_to_end
from trident_backend.core import EngineCore
from trident_backend.sequences.sequence import FinishReason, Sequence
from trident_ensemble.contract.settings import BatchSchedulerPolicy, CoreSettings

GUARANTEED = CoreSettings(batch_scheduler_policy=BatchSchedulerPolicy.GUARANTEED_NO_EVICT)
UTILIZING = CoreSettings(batch_scheduler_policy=BatchSchedulerPolicy.MAX_UTILIZATION)


def _crowd() -> list[Sequence]:
    """Short prompts that may grow to 62 tokens, so that 24 blocks of 4 hold one and a half of them."""
    return [make_sequence(i, [i, 1 + i], 60, arrived_at=i * 1e-3) for i in range(6)]


def _most_at_once(core: EngineCore) -> int:
    most = 0
    while core.scheduler.waiting or core.scheduler.running:
        core.step()
        most = max(most, len(core.scheduler.running))
        core.kv_cache.check_integrity(core.scheduler.running)
    return most


def test_policies_guaranteed_runs_what_it_can_finish_and_never_interrupts() -> None:
    core, _ = make_core(GUARANTEED)
    sequences = _crowd()
    add(core, *sequences)
    assert _most_at_once(core) == SPEC.num_blocks * SPEC.block_size // sequences[0].max_len == 1
    assert all(s.num_preemptions == 0 and s.token_ids[2:] == expected_output(s) for s in sequences)


def test_policies_utilizing_runs_more_at_once_and_loses_no_token() -> None:
    core, _ = make_core(UTILIZING)
    sequences = _crowd()
    add(core, *sequences)
    assert _most_at_once(core) >= 2
    assert sum(s.num_preemptions for s in sequences) > 0
    assert all(s.finish_reason is FinishReason.LENGTH and s.token_ids[2:] == expected_output(s) for s in sequences)
    assert core.kv_cache.num_used == 0


def test_policies_the_youngest_gives_way_and_comes_back_before_those_who_never_ran() -> None:
    core, _ = make_core(UTILIZING)
    old, young, never = [make_sequence(i, [i] * 4, 58, arrived_at=float(i)) for i in range(3)]
    add(core, old, young, never)
    core.step()
    assert core.scheduler.running == [old, young], "each is promised 9 blocks of 24"
    preempted = next(filter(None, (core.step().output.preempted for _ in range(60))))
    assert preempted == (young,)
    assert (young.num_preemptions, young.num_computed_tokens, young.block_table.tolist()) == (1, 0, [])
    num_tokens, first_token_at = young.num_tokens, young.first_token_at
    assert num_tokens > 40, "it is not thrown out of what it was promised"
    for _ in range(60):
        core.step()
        if young in core.scheduler.running:
            break
        assert never.first_scheduled_at is None
    assert young.num_tokens >= num_tokens
    run_to_end(core)
    assert young.first_token_at == first_token_at
    assert [s.token_ids[4:] for s in (old, young, never)] == [expected_output(s) for s in (old, young, never)]


def test_policies_what_was_computed_before_a_preemption_is_found_again() -> None:
    """On a pool with room to keep it: the youngest waits for the blocks that the oldest gives back."""
    core, _ = make_core(UTILIZING)
    old, young = make_sequence(0, [1] * 4, 58), make_sequence(1, [2] * 4, 58)
    add(core, old, young)
    run_to_end(core)
    assert young.num_preemptions == 1
    assert core.kv_cache.num_reused >= 8, "of the 12 that it had, the oldest has taken but a few since"
    assert young.token_ids[4:] == expected_output(young)


def test_policies_a_step_that_only_preempts_lets_in_who_fits() -> None:
    """Else nothing would run, and nobody would ask again until something comes in from outside."""
    core, clock = make_core(UTILIZING)
    held, stream = make_sequence(0, [1] * 4, 58, tenant="other"), make_sequence(1, [2] * 4, 58)
    add(core, held, stream)
    for _ in range(30):
        core.step()
    held.paused = True
    for _ in range(100):
        if (core.kv_cache.num_free, stream.num_tokens % SPEC.block_size) == (0, 1):
            break
        core.step()
    small = make_sequence(2, [3], 2, tenant="other", arrived_at=clock())
    add(core, small)
    output = core.step().output
    assert output.preempted == (stream,)
    assert [chunk.sequence for chunk in output.chunks] == [small]


@pytest.mark.parametrize("tenant", ["", "other"])
@pytest.mark.parametrize("settings", [GUARANTEED, UTILIZING], ids=lambda s: s.batch_scheduler_policy.value)
def test_policies_a_large_request_is_not_overtaken_for_ever_by_small_ones(settings: CoreSettings, tenant: str) -> None:
    """It needs two thirds of the pool, while small ones of its own or of another tenant keep coming."""
    core, clock = make_core(settings)
    for number in range(1, 5):
        add(core, make_sequence(number, [number] * 8, 12, tenant=tenant, arrived_at=clock()))
        for _ in range(3):
            core.step()
    large = make_sequence(0, [3] * 40, 20, arrived_at=clock())
    add(core, large)
    for number in range(5, 300):
        add(core, make_sequence(number, [number % 97] * 8, 12, tenant=tenant, arrived_at=clock()))
        core.step()
        if large.finish_reason is not None:
            break
    assert large.finish_reason is FinishReason.LENGTH
    assert number < 5 + 12 + 4 + 20 + 30, "the small ones before it, its own steps, and some slack"


@pytest.mark.slow
def test_policies_each_mechanism_really_happens() -> None:
    """One seeded history through all of them, so that the random ones cannot pass by never meeting any."""
    settings = CoreSettings(batch_scheduler_policy=BatchSchedulerPolicy.MAX_UTILIZATION, max_draft_tokens=3)
    core, clock = make_core(settings, replace(SPEC, vocab_size=3), linear(0.01, 1e-5))
    rng = random.Random(5)  # noqa: S311 (a test's choice)
    text = [rng.randrange(3) for _ in range(24)]
    sequences = []
    for number in range(120):
        prompt = [*text[: rng.randint(1, 20)], rng.randrange(3)]
        sequences.append(make_sequence(number, prompt, rng.choice([4, 43]), arrived_at=clock()))
        add(core, sequences[-1])
        for _ in range(rng.randint(0, 8)):
            core.step()
    run_to_end(core)
    assert sum(s.num_preemptions for s in sequences) >= 10
    assert sum(s.num_cached_tokens for s in sequences) >= 200
    assert sum(s.num_draft_tokens for s in sequences) >= 200
    assert sum(s.num_accepted_tokens for s in sequences) >= 50
    assert all(s.token_ids[s.num_prompt_tokens :] == expected_output(s, 3) for s in sequences)


@pytest.mark.parametrize("priority", [0, -100])
def test_policies_priority_does_not_save_the_youngest_from_preemption(priority: int) -> None:
    spec = replace(SPEC, max_num_seqs=4, num_blocks=44)
    core, clock = make_core(CoreSettings(batch_scheduler_policy=BatchSchedulerPolicy.MAX_UTILIZATION), spec)
    older = [make_sequence(i, [i] * 8, 50, tenant="older") for i in range(2)]
    add(core, *older)
    for _ in range(3):
        core.step()
    younger = [
        make_sequence(10 + i, [5 + i] * 8, 50, tenant="younger", arrived_at=clock(), priority=priority)
        for i in range(2)
    ]
    add(core, *younger)
    run_to_end(core)
    assert sum(sequence.num_preemptions for sequence in older) == 0
    assert sum(sequence.num_preemptions for sequence in younger) > 0
