"""Siblings: sequences of one request, whose prompt is computed once and whose blocks part when one of them writes."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest

from tests.fakes.core import SPEC, add, expected_tokens, linear, make_core, make_sequence, run_to_end
from trident_backend.core import EngineCore
from trident_backend.engine.mock import MockEngine
from trident_backend.kv.blocks import BlockManager
from trident_backend.scheduling.fair_queue import FairQueue
from trident_backend.scheduling.ttft_estimate import TtftEstimate
from trident_backend.sequences.sequence import FinishReason, Sequence
from trident_backend.sequences.step_time import StepTime, StepTimeModel
from trident_backend.sequences.steps import SchedulerOutput
from trident_ensemble.contract.errors import EngineError
from trident_ensemble.contract.manifest import KVKind
from trident_ensemble.contract.settings import BatchSchedulerPolicy, CoreSettings

NO_REUSE = CoreSettings(enable_kv_cache_reuse=False)
ON_BOTH_KINDS = pytest.mark.parametrize("kind", KVKind)


def _family(prompt: list[int], max_tokens: int, num_siblings: int, first_id: int = 0, **fields: Any) -> list[Sequence]:
    parent = make_sequence(first_id, prompt, max_tokens, **fields)
    return [
        parent,
        *(make_sequence(first_id + 1 + i, prompt, max_tokens, parent=parent, **fields) for i in range(num_siblings)),
    ]


def _core(settings: CoreSettings = NO_REUSE, kind: KVKind = KVKind.BLOCKS, **limits: Any) -> EngineCore:
    """On the mock engine itself, of which outputs are known without a sampler."""
    clock = make_core()[1]
    spec = replace(SPEC, **limits)
    if kind is KVKind.SLOTS:
        spec = replace(spec, block_size=spec.max_seq_len, num_blocks=spec.max_num_seqs, kv_kind=kind)
    return EngineCore(MockEngine(spec), settings, clock)


def _is_right(sequence: Sequence) -> bool:
    prompt = sequence.token_ids[: sequence.num_prompt_tokens]
    return sequence.token_ids[sequence.num_prompt_tokens :] == expected_tokens(prompt, sequence.max_tokens)


def _checked_run(core: EngineCore) -> list[SchedulerOutput]:
    """Step to the end."""
    steps: list[SchedulerOutput] = []
    while core.scheduler.waiting or core.scheduler.running:
        assert not steps or steps[-1].chunks, "it does not come to an end"
        steps.append(core.step().output)
        core.kv_cache.check_integrity(core.scheduler.running)
    assert core.kv_cache.num_used == 0
    return steps


@pytest.mark.parametrize("num_prompt_tokens", range(1, 14))
@pytest.mark.parametrize("settings", [NO_REUSE, CoreSettings()], ids=["no reuse", "reuse"])
def test_shared_prompts_siblings_compute_the_last_token_of_their_prompt_alone(
    settings: CoreSettings, num_prompt_tokens: int
) -> None:
    core = _core(settings)
    family = _family(list(range(num_prompt_tokens)), 6, 3)
    add(core, *family)
    assert core.step().output.num_tokens == num_prompt_tokens
    output = core.step().output
    assert output.num_tokens == 4
    num_full, rest = divmod(num_prompt_tokens - 1, SPEC.block_size)
    assert len(output.block_copies) == (3 if rest else 0)
    tables = [sequence.block_table for sequence in family]
    assert all(table[:num_full] == tables[0][:num_full] for table in tables)
    assert len({table[num_full] for table in tables}) == 4, "nobody writes where another reads"
    assert [sequence.num_cached_tokens for sequence in family] == [0] + 3 * [num_prompt_tokens - 1]
    core.kv_cache.check_integrity(core.scheduler.running)
    num_tokens = [step.num_tokens for step in _checked_run(core)]
    assert num_tokens == [4, 4, 4, 4, 3], "its parent is a token ahead"
    assert all(_is_right(sequence) for sequence in family)


@ON_BOTH_KINDS
def test_shared_prompts_siblings_that_wait_for_their_parent_are_passed_over(kind: KVKind) -> None:
    core = _core(kind=kind)
    family = _family(list(range(40)), 4, 2)
    other = make_sequence(9, [1, 2, 3], 4)
    add(core, *family, other)
    core.step()
    assert core.scheduler.running == [family[0]], "all the step's tokens are its parent's"
    core.step()
    core.step()
    assert core.scheduler.running == [family[0], other]
    core.step()
    assert core.scheduler.running == [*family, other]
    _checked_run(core)
    assert all(_is_right(sequence) for sequence in [*family, other])


def test_shared_prompts_a_sibling_that_waits_for_room_is_waited_for() -> None:
    """Only its parent's prompt is no reason to let others go first."""
    core = _core(num_blocks=9)
    family = _family(list(range(10)), 14, 1)
    small = make_sequence(9, [1], 2)
    add(core, *family, small)
    core.step()
    assert core.scheduler.running == [family[0], small], "the sibling waits for its parent"
    add(core, another := make_sequence(10, [2], 2))
    core.step()
    assert another not in core.scheduler.running
    assert family[1] not in core.scheduler.running, "two blocks are shared, but three are left, and it wants four"
    _checked_run(core)
    assert all(_is_right(sequence) for sequence in [*family, small, another])


@ON_BOTH_KINDS
def test_shared_prompts_without_its_parent_a_sibling_computes_the_prompt_itself(kind: KVKind) -> None:
    core = _core(kind=kind)
    family = _family(list(range(10)), 1, 2)
    add(core, *family)
    assert core.step().output.num_tokens == 10
    assert family[0].finish_reason is FinishReason.LENGTH
    assert core.step().output.num_tokens == 16, "both at once"
    _checked_run(core)
    assert all(_is_right(sequence) for sequence in family)


@ON_BOTH_KINDS
def test_shared_prompts_a_sibling_does_not_wait_for_a_parent_that_ended_early(kind: KVKind) -> None:
    core = _core(kind=kind)
    family = _family(list(range(30)), 4, 2)
    add(core, *family)
    core.step()
    core.scheduler.finish(family[0], FinishReason.CANCELLED)
    core.scheduler.finish(family[1], FinishReason.CANCELLED)
    assert core.step().output.num_tokens == 16
    _checked_run(core)
    assert _is_right(family[2])


@ON_BOTH_KINDS
def test_shared_prompts_a_family_that_is_cancelled_while_it_waits_leaves_nothing_behind(kind: KVKind) -> None:
    core = _core(kind=kind)
    family = _family(list(range(30)), 4, 2, tenant="a")
    add(core, *family)
    core.step()
    for sequence in family:
        core.scheduler.finish(sequence, FinishReason.CANCELLED)
    add(core, other := make_sequence(9, [1], 2, tenant="b"))
    _checked_run(core)
    assert _is_right(other)
    assert not core.scheduler.waiting._held


def test_shared_prompts_what_is_lent_stays_when_its_owner_has_gone_until_it_is_copied() -> None:
    core = _core(num_blocks=12)
    parent, sibling = family = _family(list(range(10)), 6, 1)
    sibling.paused = True
    add(core, *family)
    core.step()
    core.step()
    assert core.scheduler.running == family
    assert sibling.block_table == parent.block_table[:3]
    while parent.finish_reason is None:
        assert core.step().output.block_copies == ()
    core.kv_cache.check_integrity(core.scheduler.running)
    # Whatever else there is is overwritten meanwhile.
    for number in range(3):
        add(core, other := make_sequence(5 + number, [50 + number] * 20, 2, arrived_at=1.0))
        while other.finish_reason is None:
            assert core.step().output.num_tokens
            core.kv_cache.check_integrity(core.scheduler.running)
    lent = sibling.block_table[-1]
    sibling.paused = False
    output = core.step().output
    assert output.block_copies == ((lent, sibling.block_table[-1], SPEC.block_size),)
    assert [chunk.sequence for chunk in output.chunks] == [sibling]
    _checked_run(core)
    assert _is_right(parent)
    assert _is_right(sibling)


@ON_BOTH_KINDS
def test_shared_prompts_a_failed_step_ends_those_whose_copies_it_held_and_no_others(kind: KVKind) -> None:
    core = _core(kind=kind)
    family = _family(list(range(10)), 6, 2)
    family[2].paused = True
    add(core, *family)
    core.step()
    engine = core._engine
    assert isinstance(engine, MockEngine)
    engine.fail_next = True
    assert len(core.step().output.block_copies) == 1
    assert [sequence.finish_reason for sequence in family] == [FinishReason.ERROR, FinishReason.ERROR, None]
    assert all(isinstance(sequence.error, EngineError) for sequence in family[:2])
    family[2].paused = False
    _checked_run(core)
    assert _is_right(family[2])


def test_shared_prompts_siblings_of_a_preempted_parent_go_on_and_new_ones_wait_for_it() -> None:
    settings = replace(NO_REUSE, batch_scheduler_policy=BatchSchedulerPolicy.MAX_UTILIZATION)
    core = _core(settings, max_num_seqs=3, num_blocks=30)
    old = make_sequence(0, [9] * 4, 58)
    parent, second, third = family = _family([1, 2, 3, 4, 5, 6], 56, 2, first_id=1, arrived_at=1.0)
    second.max_tokens = 50
    add(core, old, *family)
    for _ in range(60):
        if parent.num_preemptions:
            break
        core.step()
        core.kv_cache.check_integrity(core.scheduler.running)
    assert parent.num_preemptions
    assert second.num_preemptions, "the younger goes first"
    assert third.first_scheduled_at is None
    assert parent.num_output_tokens > 0
    core.scheduler.finish(old, FinishReason.CANCELLED)
    parent.paused = True
    num_tokens = second.num_tokens
    for _ in range(8):
        core.step()
        core.kv_cache.check_integrity(core.scheduler.running)
    assert second.num_tokens > num_tokens, "nobody's stream depends on another's"
    assert core.scheduler.running == [parent, second]
    assert third in core.scheduler.waiting
    parent.paused = False
    _checked_run(core)
    assert all(_is_right(sequence) for sequence in family)


@ON_BOTH_KINDS
def test_shared_prompts_a_tenant_is_charged_for_what_is_computed(kind: KVKind) -> None:
    core = _core(kind=kind, max_num_seqs=8, num_blocks=96)
    add(core, make_sequence(90, [5], 60, tenant="a"), make_sequence(91, [6], 60, tenant="b"))
    core.step()
    before = core.scheduler.waiting.served("a") - core.scheduler.waiting.served("b")
    add(core, *_family(list(range(10)), 2, 2, tenant="a"))
    for _ in range(5):
        core.step()
    after = core.scheduler.waiting.served("a") - core.scheduler.waiting.served("b")
    assert after - before == 10 + 2 * 1 + 3 * 1, "the prompt once, its last token twice more, a token of output each"


def test_shared_prompts_a_sibling_is_not_refused_for_a_prompt_that_it_need_not_compute() -> None:
    core, clock = make_core(NO_REUSE, replace(SPEC, num_blocks=96), linear(0.0, 0.01))
    # A stream keeps the engine busy, and its speed is learned.
    add(core, make_sequence(90, [1, 2], 62))
    for _ in range(20):
        core.step()
    now = clock()
    add(core, *(family := _family(list(range(40)), 2, 2, arrived_at=now, deadline=now + 0.7)))
    assert all(sequence.finish_reason is None for sequence in family), "40 and 2 tokens take less, 120 more"
    run_to_end(core)
    assert all(sequence.finish_reason is FinishReason.LENGTH for sequence in family)


def test_shared_prompts_are_no_reason_to_expect_hits_in_the_cache() -> None:
    class Known(StepTimeModel):
        fitted = StepTime(base=0.0, per_token=0.01, per_pair=0.0, per_row=0.0)

    estimate = TtftEstimate(BlockManager(24, 4), 16, Known())
    waiting = FairQueue({}, 1.0)
    first, second = make_sequence(0, [1] * 20, 1), make_sequence(1, [2] * 20, 1)
    waiting.enter(first)
    waiting.push(first)
    assert estimate.seconds(second, waiting) == pytest.approx(0.4)
    estimate.admitted(make_sequence(2, [1] * 20, 1, parent=first), 19)
    assert estimate.seconds(second, waiting) == pytest.approx(0.4)
    estimate.admitted(make_sequence(3, [1] * 20, 1), 16)
    assert estimate.seconds(second, waiting) < 0.4


def test_shared_prompts_copies_happen_in_a_crowd_of_every_kind() -> None:
    """One seeded history, so that the random ones cannot pass by never meeting any copy."""
    settings = CoreSettings(batch_scheduler_policy=BatchSchedulerPolicy.MAX_UTILIZATION, max_draft_tokens=3)
    core = _core(settings, max_num_seqs=8, num_blocks=40)
    rng = random.Random(8)  # noqa: S311 (a test's choice)
    everyone: list[Sequence] = []
    steps = []
    for _ in range(60):
        prompt = [*range(rng.randint(0, 18)), rng.randrange(97)]
        family = _family(prompt, rng.choice([4, 40]), rng.randint(0, 4), len(everyone), arrived_at=core.clock())
        add(core, *family)
        everyone += family
        for _ in range(rng.randint(0, 8)):
            steps.append(core.step().output)
            core.kv_cache.check_integrity(core.scheduler.running)
    steps += _checked_run(core)
    assert sum(len(step.block_copies) for step in steps) >= 30
    assert sum(sequence.num_preemptions for sequence in everyone) >= 5
    assert all(_is_right(sequence) for sequence in everyone)
