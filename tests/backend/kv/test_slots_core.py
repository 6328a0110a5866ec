"""The whole core on an engine with slots, in which the mock puts junk wherever nothing is copied."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import pytest

from tests.fakes.core import SPEC, Client, Clock, add, expected_tokens, make_sequence, run_to_end
from tests.fakes.serving import serving
from trident_backend import batch
from trident_backend.core import EngineCore
from trident_backend.engine.mock import MockEngine
from trident_backend.engine.protocol import StepBatch
from trident_backend.kv.slots import SlotManager
from trident_backend.sequences.sequence import FinishReason, Sequence
from trident_backend.sequences.steps import SchedulerOutput
from trident_ensemble.contract.manifest import KVKind
from trident_ensemble.contract.settings import BatchSchedulerPolicy, CoreSettings

SLOTS = replace(SPEC, block_size=64, num_blocks=4, kv_kind=KVKind.SLOTS)


@pytest.fixture(autouse=True)
def small_hash_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trident_backend.kv.cache.SLOT_HASH_BLOCK_SIZE", 4)


def _core(settings: CoreSettings | None = None, num_slots: int = 4, max_num_seqs: int = 4) -> EngineCore:
    spec = replace(SLOTS, num_blocks=num_slots, max_num_seqs=max_num_seqs)
    core = EngineCore(MockEngine(spec), settings or CoreSettings(), Clock())
    assert isinstance(core.kv_cache, SlotManager)
    return core


def _family(prompt: list[int], max_tokens: int, num_siblings: int, first_id: int = 0) -> list[Sequence]:
    first = make_sequence(first_id, prompt, max_tokens)
    others = (make_sequence(first_id + 1 + i, prompt, max_tokens, parent=first) for i in range(num_siblings))
    return [first, *others]


def _is_right(sequence: Sequence) -> bool:
    """It was served, or what there is of it is right."""
    prompt = sequence.token_ids[: sequence.num_prompt_tokens]
    output = sequence.token_ids[sequence.num_prompt_tokens :]
    is_whole = len(output) == sequence.max_tokens or sequence.finish_reason is not FinishReason.LENGTH
    return is_whole and output == expected_tokens(prompt, sequence.max_tokens)[: len(output)]


def _checked_step(core: EngineCore) -> SchedulerOutput:
    output = core.step().output
    core.kv_cache.check_integrity(core.scheduler.running)
    return output


@pytest.mark.parametrize("num_prompt_tokens", [1, 2, 4, 5, 11, 16])
@pytest.mark.parametrize("reuse", [True, False])
def test_slots_core_siblings_compute_the_last_token_of_their_prompt_alone(reuse: bool, num_prompt_tokens: int) -> None:
    core = _core(CoreSettings(enable_kv_cache_reuse=reuse))
    family = _family(list(range(num_prompt_tokens)), 6, 3)
    add(core, *family)
    assert _checked_step(core).num_tokens == num_prompt_tokens
    output = _checked_step(core)
    assert output.num_tokens == 4
    num_shared = num_prompt_tokens - 1
    assert output.block_copies == (tuple((0, slot, num_shared) for slot in (1, 2, 3)) if num_shared else ())
    assert [sequence.block_table for sequence in family] == [[0], [1], [2], [3]]
    assert [sequence.num_cached_tokens for sequence in family] == [0] + 3 * [num_shared]
    run_to_end(core)
    assert all(_is_right(sequence) for sequence in family)
    assert core.kv_cache.num_used == 0


@pytest.mark.parametrize("policy", BatchSchedulerPolicy)
def test_slots_core_every_policy_admits_as_many_as_there_are_slots_and_takes_nothing_back(
    policy: BatchSchedulerPolicy,
) -> None:
    core = _core(CoreSettings(batch_scheduler_policy=policy), num_slots=3)
    short, long = [make_sequence(i, [i], 3) for i in range(3)], [make_sequence(3 + i, [i] * 4, 60) for i in range(4)]
    add(core, *short, *long)
    _checked_step(core)
    assert core.scheduler.running == short
    most = 0
    while core.scheduler.running:
        assert _checked_step(core).preempted == ()
        most = max(most, len(core.scheduler.running))
    assert most == 3
    assert all(_is_right(sequence) for sequence in [*short, *long])


def test_slots_core_a_conversation_goes_on_in_its_slot_and_computes_only_what_is_new() -> None:
    core = _core()
    token_ids = list(range(10))
    num_tokens = []
    for turn in range(4):
        add(core, sequence := make_sequence(turn, token_ids, 4))
        output = _checked_step(core)
        assert (output.block_copies, sequence.block_table.tolist()) == ((), [0])
        num_tokens.append(output.num_tokens)
        run_to_end(core)
        assert _is_right(sequence)
        token_ids = [*sequence.token_ids, 7, turn, 7]
    # Of the turn before, all but the last token was computed; what does not fill a hash block is computed again.
    assert num_tokens == [10, 17 - 12, 24 - 20, 31 - 24]


def test_slots_core_a_lone_stream_keeps_to_the_lowest_slot_and_finds_what_an_ideal_cache_would(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """To swap two slots takes a third, so of as many conversations as slots the one that was used first may be lost:
    found is what the best cache of one slot less has, and nothing that the best of as many has not."""
    core = _core(num_slots=16)
    submit = core._engine.submit
    slots_of_steps: list[list[int]] = []

    def noting(packed: StepBatch) -> None:
        slots_of_steps.append(packed.block_indices.tolist())
        submit(packed)

    monkeypatch.setattr(core._engine, "submit", noting)
    rng = random.Random(5)  # noqa: S311 (a test's choice)
    names = list(range(40))
    conversations = {name: [name, 5, 7] * 3 for name in names}
    recent: list[int] = []
    met: Counter[str] = Counter()
    for turn in range(600):
        # Some come back soon, some late.
        index = min(int(rng.expovariate(1 / 8)), len(names) - 1)
        name, prompt = names[index], conversations[names[index]]
        add(core, sequence := make_sequence(turn, prompt, 3))
        while sequence.finish_reason is None:
            _checked_step(core)
        assert _is_right(sequence)
        place = recent.index(name) if name in recent else 99
        # Of the turn before, the last token was never computed.
        whole = (len(prompt) - 2) // 4 * 4
        met["sure" if place < 15 else "lost" if place > 15 else "on the edge"] += 1
        assert sequence.num_cached_tokens in ([whole] if place < 15 else [0] if place > 15 else [0, whole])
        recent = [name, *(other for other in recent if other != name)]
        conversations[name] = [*sequence.token_ids, turn % 97]
        if len(prompt) > 40:
            # It does not come back; another begins.
            names[index] = name + len(names)
            conversations[names[index]] = [names[index] % 97, names[index] // 97, 7] * 3
    assert min(met["sure"], met["lost"]) > 100
    assert slots_of_steps == [[0]] * len(slots_of_steps)


def test_slots_core_a_slot_is_reported_as_found_if_any_of_its_tokens_were() -> None:
    with serving(MockEngine(SLOTS)) as service:
        for num_cached in (0, 8):
            client = Client()
            service.submit({"input_ids": list(range(11)), "max_tokens": 4, "return_perf_metrics": True}, client)
            assert client.done.wait(60)
            outputs = client.outputs
            num_found = int(num_cached > 0)
            assert outputs["num_cached_tokens"] == [num_cached]
            assert outputs["kv_cache_reused_blocks"] == [num_found]
            assert outputs["kv_cache_alloc_new_blocks"] == [1 - num_found]
            assert outputs["kv_cache_alloc_total_blocks"] == [1]


def test_slots_core_a_step_is_packed_with_one_slot_for_each_sequence() -> None:
    core = _core()
    family = _family(list(range(9)), 6, 2)
    add(core, *family, make_sequence(9, [5] * 3, 6))
    core.step()
    output = core.scheduler.schedule(0.0)
    packed = batch.pack(output, core.kv_cache.block_size)
    assert packed.block_indices.tolist() == [chunk.sequence.block_table[0] for chunk in output.chunks]
    assert packed.block_indices_begins.tolist() == list(range(len(output.chunks) + 1))
    assert packed.block_copies.tolist() == [list(copied) for copied in output.block_copies]
    assert len(packed.block_copies) == 2


def test_slots_core_whoever_is_paused_before_its_first_step_reads_what_was_there() -> None:
    core = _core(num_slots=3)
    owner = make_sequence(0, list(range(12)), 6)
    add(core, owner)
    _checked_step(core)
    reader = make_sequence(1, [*range(8), 50], 4, paused=True)
    add(core, reader)
    while owner.finish_reason is None:
        assert _checked_step(core).block_copies == ()
    assert (reader.num_computed_tokens, reader.block_table.tolist()) == (8, [1])
    assert core.kv_cache.num_free == 1
    # Whatever else there is is overwritten meanwhile.
    for number in range(3):
        add(core, other := make_sequence(2 + number, [60 + number] * 20, 2))
        while other.finish_reason is None:
            _checked_step(core)
    reader.paused = False
    assert _checked_step(core).block_copies == ((0, 1, 8),)
    run_to_end(core)
    assert _is_right(reader)


def test_slots_core_a_failed_step_leaves_nothing_that_others_read() -> None:
    core = _core()
    owner = make_sequence(0, list(range(14)), 20)
    add(core, owner)
    _checked_step(core)
    readers = [make_sequence(i, [*range(12), 50 + i], 4) for i in range(1, 5)]
    readers[1].paused = True
    add(core, *readers[:2])
    engine = core._engine
    assert isinstance(engine, MockEngine)
    engine.fail_next = True
    assert len(_checked_step(core).block_copies) == 1
    assert [s.finish_reason for s in (owner, *readers[:2])] == [FinishReason.ERROR, FinishReason.ERROR, None]
    readers[1].paused = False
    add(core, *readers[2:])
    while core.scheduler.running or core.scheduler.waiting:
        _checked_step(core)
    assert all(_is_right(sequence) and sequence.num_cached_tokens == 12 for sequence in readers[1:])


def test_slots_core_a_crowd_of_every_kind_meets_moves_copies_and_siblings() -> None:
    """One seeded history, so that the random ones cannot pass by never meeting any."""
    settings = CoreSettings(max_draft_tokens=3, batch_scheduler_policy=BatchSchedulerPolicy.MAX_UTILIZATION)
    core = _core(settings, num_slots=10, max_num_seqs=8)
    rng = random.Random(8)  # noqa: S311 (a test's choice)
    everyone: list[Sequence] = []
    steps = []
    while len(everyone) < 250 or core.scheduler.running or core.scheduler.waiting:
        if len(everyone) < 250:
            prompt = [*range(rng.randint(0, 18)), rng.randrange(97)]
            family = _family(prompt, rng.choice([4, 40]), rng.choice([0, 0, 1, 4]), len(everyone))
            add(core, *family)
            everyone += family
        for _ in range(rng.randint(0, 8)):
            steps.append(_checked_step(core))
        victim = rng.choice(everyone)
        if rng.random() < 0.1:
            core.scheduler.finish(victim, FinishReason.CANCELLED)
        victim.paused = rng.random() < 0.3 and len(everyone) < 250
        if len(everyone) >= 250:
            for sequence in everyone:
                sequence.paused = False
    num_copies = sum(len(step.block_copies) for step in steps)
    found = [sequence for sequence in everyone if sequence.num_cached_tokens]
    assert num_copies >= 50
    assert len({copied for step in steps for copied in step.block_copies if copied[1] > copied[0]}) >= 20, "moves"
    assert sum(sequence.parent is not None and sequence.num_cached_tokens % 4 != 0 for sequence in found) >= 20
    assert all(_is_right(sequence) for sequence in everyone)
    assert core.kv_cache.num_used == 0
