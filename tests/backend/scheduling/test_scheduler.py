"""The scheduler's order and bookkeeping, case by case; random histories are next door."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from tests.fakes.core import SPEC, add, make_core, make_sequence, run_to_end
from trident_backend.batch import pack
from trident_backend.kv.blocks import BlockManager
from trident_backend.scheduling.scheduler import Scheduler
from trident_backend.sequences.choices import Choices
from trident_backend.sequences.sequence import FinishReason
from trident_backend.sequences.step_time import StepTimeModel
from trident_backend.sequences.steps import Advance
from trident_ensemble.contract.errors import ConfigError
from trident_ensemble.contract.settings import CoreSettings


def _scheduler(num_blocks: int = 8, max_num_seqs: int = 2, max_num_tokens: int = 8) -> Scheduler:
    return Scheduler(BlockManager(num_blocks, 4), max_num_seqs, max_num_tokens, CoreSettings(), StepTimeModel())


def test_scheduler_admission_is_in_order_of_arrival() -> None:
    core, _ = make_core()
    rng = random.Random(7)  # noqa: S311 (a test's choice)
    sequences = [make_sequence(i, [1] * rng.randint(1, 40), rng.randint(1, 20)) for i in range(60)]
    add(core, *sequences)
    order: list[int] = []
    while core.scheduler.waiting or core.scheduler.running:
        core.step()
        order.extend(s.sequence_id for s in core.scheduler.running if s.sequence_id not in order)
    assert order == [sequence.sequence_id for sequence in sequences if sequence.sequence_id in order]
    assert all(sequence.finish_reason is FinishReason.LENGTH for sequence in sequences)


def test_scheduler_a_long_prompt_is_computed_in_chunks_beside_a_running_stream() -> None:
    core, _ = make_core()
    stream, long = make_sequence(0, [5], 20), make_sequence(1, list(range(40)), 2)
    add(core, stream)
    core.step()
    add(core, long)
    progress = []
    for _ in range(3):
        core.step()
        progress.append((stream.num_output_tokens, long.num_computed_tokens))
    assert progress == [(2, 15), (3, 30), (4, 40)]


def test_scheduler_the_setting_lowers_the_token_budget_within_the_engines_bounds() -> None:
    core, _ = make_core(CoreSettings(token_budget=5))
    add(core, make_sequence(0, [1] * 12, 1))
    assert [core.step().output.num_tokens for _ in range(3)] == [5, 5, 2]
    for num_tokens in (SPEC.max_num_seqs - 1, SPEC.max_num_tokens + 1):
        with pytest.raises(ConfigError, match=r"parameters\.token_budget: must be from 4 .* to 16"):
            make_core(CoreSettings(token_budget=num_tokens))


def test_scheduler_schedule_and_update_ask_the_kv_cache_only_at_the_ends_of_blocks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scheduler, calls = _scheduler(), Counter[str]()
    for name in ("grow", "commit"):
        monkeypatch.setattr(BlockManager, name, _counting(name, getattr(BlockManager, name), calls))
    scheduler.add(make_sequence(0, [1] * 4, 20), 0.0)
    asked = []
    for number in range(16):
        calls.clear()
        output = scheduler.schedule(float(number))
        scheduler.update(output, Choices([1] * len(output.rows)), float(number), 0.1)
        scheduler._kv_cache.check_integrity(scheduler.running)
        asked.append((calls["grow"], calls["commit"]))
    # The prompt fills a block of 4 tokens; the step that computes a block's first token needs it, its last fills it.
    assert asked == [(1, 1), (1, 0), (0, 0), (0, 0), (0, 1)] + [(1, 0), (0, 0), (0, 0), (0, 1)] * 2 + [
        (1, 0),
        (0, 0),
        (0, 0),
    ]


def _counting(name: str, method: Callable[..., Any], calls: Counter[str]) -> Callable[..., Any]:
    def counting(*args: Any) -> Any:
        calls[name] += 1
        return method(*args)

    return counting


def test_scheduler_nothing_is_committed_before_update() -> None:
    scheduler = _scheduler()
    sequence = make_sequence(0, [1, 2, 3], 4)
    scheduler.add(sequence, 0.0)
    output = scheduler.schedule(0.5)
    assert (sequence.num_computed_tokens, sequence.num_tokens) == (0, 3)
    assert scheduler.update(output, Choices([9]), 2.0, 1.5) == (Advance(sequence, 1, None),)
    assert (sequence.num_computed_tokens, sequence.token_ids) == (3, [1, 2, 3, 9])
    assert scheduler.update(scheduler.schedule(2.0), Choices([8]), 5.0, 3.0) == (Advance(sequence, 1, 3.0),)
    assert (sequence.first_scheduled_at, sequence.first_token_at, sequence.last_token_at) == (0.5, 2.0, 5.0)


def test_scheduler_end_ids_end_and_are_part_of_the_output() -> None:
    sequence = make_sequence(0, [1], 9, end_ids=frozenset({4, 6}))
    scheduler = _scheduler(max_num_seqs=1, max_num_tokens=4)
    scheduler.add(sequence, 0.0)
    for token_id in (5, 6):
        scheduler.update(scheduler.schedule(0.0), Choices([token_id]), 0.0, 0.01)
    assert sequence.finish_reason is FinishReason.EOS
    assert sequence.token_ids == [1, 5, 6]


def test_scheduler_ending_twice_changes_nothing() -> None:
    scheduler = _scheduler()
    running, waiting = make_sequence(0, [1] * 9, 20), make_sequence(1, [1] * 9, 20)
    scheduler.add(running, 0.0)
    scheduler.add(waiting, 0.0)
    scheduler.schedule(0.0)
    assert scheduler.running == [running], "the second finds no room"
    for sequence in (running, waiting):
        scheduler.finish(sequence, FinishReason.CANCELLED)
        scheduler.finish(sequence, FinishReason.ERROR)
    assert [(s, s.finish_reason) for s in scheduler.take_ended()] == [
        (running, FinishReason.CANCELLED),
        (waiting, FinishReason.CANCELLED),
    ]
    assert not scheduler.take_ended()
    assert not scheduler.running
    assert not scheduler.waiting


def test_scheduler_a_paused_stream_keeps_its_place_and_costs_nothing() -> None:
    core, _ = make_core()
    paused, other = make_sequence(0, [1, 2], 9), make_sequence(1, [3, 4], 9)
    add(core, paused, other)
    core.step()
    paused.paused = True
    assert [chunk.sequence for chunk in core.step().output.chunks] == [other]
    paused.paused = False
    assert [chunk.sequence for chunk in core.step().output.chunks] == [paused, other]
    run_to_end(core)
    assert paused.finish_reason is other.finish_reason is FinishReason.LENGTH


def test_scheduler_a_prompt_is_shared_as_soon_as_it_is_computed() -> None:
    core, _ = make_core()
    first, second = make_sequence(0, list(range(14)), 20), make_sequence(1, [*range(14), 9], 20)
    add(core, first)
    core.step()
    add(core, second)
    core.step()
    assert (first.finish_reason, second.num_cached_tokens) == (None, 12)
    assert second.block_table[:3] == first.block_table[:3]


def test_scheduler_pack_matches_a_plain_reading_of_the_step() -> None:
    core, _ = make_core()
    first, second = make_sequence(0, [11, 12, 13, 14, 15], 8), make_sequence(1, list(range(20, 40)), 8)
    add(core, first)
    core.step()
    add(core, second)
    packed = pack(core.scheduler.schedule(1.0), SPEC.block_size)
    assert packed.token_ids.tolist() == [first.token_ids[-1], *range(20, 35)]
    assert packed.position_ids.tolist() == [5, *range(15)]
    assert packed.past_lens.tolist() == [5, 0]
    assert packed.subsequence_begins.tolist() == [0, 1, 16]
    assert packed.block_indices_begins.tolist() == [0, 2, 6]
    assert packed.block_indices.tolist() == [*first.block_table[:2], *second.block_table[:4]]
    assert packed.max_context_len == 15
    assert packed.logit_rows.tolist() == [0]
