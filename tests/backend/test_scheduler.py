"""Random histories of the pure scheduler: budgets, blocks, order, and the same tokens as without batching."""

from __future__ import annotations

import random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.backend.doubles import SPEC, expected_tokens, make_sequence
from trident_backend.batch import pack
from trident_backend.blocks import BlockManager
from trident_backend.core import EngineCore
from trident_backend.engine.mock import MockEngine
from trident_backend.scheduler import Scheduler
from trident_backend.sequence import FinishReason, Sequence


class Histories(RuleBasedStateMachine):
    """Adds, aborts, pauses and steps in any order, checked after each."""

    def __init__(self) -> None:
        super().__init__()
        self.engine = MockEngine(SPEC)
        self.core = EngineCore(self.engine)
        self.sequences: list[Sequence] = []

    @rule(prompt=st.lists(st.integers(0, SPEC.vocab_size - 1), min_size=1, max_size=40), max_tokens=st.integers(1, 24))
    def add(self, prompt: list[int], max_tokens: int) -> None:
        sequence = make_sequence(len(self.sequences), prompt, max_tokens)
        self.sequences.append(sequence)
        self.core.scheduler.add(sequence)

    @precondition(lambda self: self.sequences)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        self.core.scheduler.finish(data.draw(st.sampled_from(self.sequences)), FinishReason.CANCELLED)

    @precondition(lambda self: self.sequences)
    @rule(data=st.data())
    def pause_or_resume(self, data: st.DataObject) -> None:
        sequence = data.draw(st.sampled_from(self.sequences))
        sequence.paused = not sequence.paused

    @rule(num_steps=st.integers(1, 8))
    def step(self, num_steps: int) -> None:
        for _ in range(num_steps):
            paused = {s: s.num_tokens for s in self.core.scheduler.running if s.paused}
            streams = [s for s in self.core.scheduler.running if s.num_remaining_tokens == 1 and not s.paused]
            result = self.core.step()
            assert result.num_tokens <= SPEC.max_num_tokens
            assert set(streams) <= set(result.advanced), "a running stream waited for somebody's prompt"
            assert all(sequence.num_tokens == length for sequence, length in paused.items())

    @rule()
    def engine_failure(self) -> None:
        self.engine.fail_next = True
        held = list(self.core.scheduler.running)
        result = self.core.step()
        self.engine.fail_next = False
        if result.num_tokens:
            assert result.error is not None
            assert all(sequence.finish_reason is FinishReason.ERROR for sequence in result.advanced)
            assert all(s.finish_reason is None for s in held if s not in result.advanced)

    @invariant()
    def blocks_are_whole(self) -> None:
        self.core.blocks.check_integrity(self.core.scheduler.running)
        assert len(self.core.scheduler.running) <= SPEC.max_num_seqs

    @invariant()
    def every_sequence_is_somewhere_once(self) -> None:
        live = [*self.core.scheduler.running, *self.core.scheduler.waiting]
        assert sorted(s.sequence_id for s in live) == [s.sequence_id for s in self.sequences if s.finish_reason is None]

    def teardown(self) -> None:
        for sequence in self.sequences:
            sequence.paused = False
        while self.core.has_work:
            assert self.core.step().num_tokens, "work is left and nothing runs"
        assert self.core.blocks.num_used == 0
        for sequence in self.sequences:
            output = sequence.token_ids[sequence.num_prompt_tokens :]
            prompt = sequence.token_ids[: sequence.num_prompt_tokens]
            assert output == expected_tokens(prompt, len(output))
            if sequence.finish_reason is FinishReason.LENGTH:
                assert len(output) == sequence.max_tokens


Histories.TestCase.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)
TestHistories = Histories.TestCase


def test_admission_is_in_order_of_arrival() -> None:
    core = EngineCore(MockEngine(SPEC))
    rng = random.Random(7)  # noqa: S311 (a test's choice)
    sequences = [make_sequence(i, [1] * rng.randint(1, 40), rng.randint(1, 20)) for i in range(60)]
    for sequence in sequences:
        core.scheduler.add(sequence)
    order: list[int] = []
    while core.has_work:
        core.step()
        order.extend(s.sequence_id for s in core.scheduler.running if s.sequence_id not in order)
    assert order == [sequence.sequence_id for sequence in sequences if sequence.sequence_id in order]
    assert all(sequence.finish_reason is FinishReason.LENGTH for sequence in sequences)


def test_a_long_prompt_is_computed_in_chunks_beside_a_running_stream() -> None:
    core = EngineCore(MockEngine(SPEC))
    stream, long = make_sequence(0, [5], 20), make_sequence(1, list(range(40)), 2)
    core.scheduler.add(stream)
    core.step()
    core.scheduler.add(long)
    progress = []
    for _ in range(3):
        core.step()
        progress.append((stream.num_output_tokens, long.num_computed_tokens))
    assert progress == [(2, 15), (3, 30), (4, 40)]


def test_nothing_is_committed_before_update() -> None:
    scheduler = Scheduler(BlockManager(8, 4), max_num_seqs=2, max_num_tokens=8)
    sequence = make_sequence(0, [1, 2, 3], 4)
    scheduler.add(sequence)
    output = scheduler.schedule()
    assert (sequence.num_computed_tokens, sequence.num_tokens) == (0, 3)
    scheduler.update(output, [9])
    assert (sequence.num_computed_tokens, sequence.token_ids) == (3, [1, 2, 3, 9])


def test_end_ids_end_and_are_part_of_the_output() -> None:
    sequence = make_sequence(0, [1], 9)
    sequence.end_ids = frozenset({4, 6})
    scheduler = Scheduler(BlockManager(8, 4), max_num_seqs=1, max_num_tokens=4)
    scheduler.add(sequence)
    for token_id in (5, 6):
        scheduler.update(scheduler.schedule(), [token_id])
    assert sequence.finish_reason is FinishReason.EOS
    assert sequence.token_ids == [1, 5, 6]


def test_a_promise_is_kept_when_others_would_take_the_blocks() -> None:
    blocks = BlockManager(num_blocks=10, block_size=4)
    first, second = make_sequence(0, [1] * 4, 20), make_sequence(1, [1] * 4, 20)
    assert blocks.admit(first)
    assert not blocks.admit(second), "6 blocks are promised of 10, and 6 more were given away"
    blocks.grow(first, 24)
    blocks.check_integrity([first])
    blocks.release(first)
    assert blocks.admit(second)


def test_pack_matches_a_plain_reading_of_the_step() -> None:
    core = EngineCore(MockEngine(SPEC))
    first, second = make_sequence(0, [11, 12, 13, 14, 15], 8), make_sequence(1, list(range(20, 40)), 8)
    core.scheduler.add(first)
    core.step()
    core.scheduler.add(second)
    packed = pack(core.scheduler.schedule(), SPEC.block_size)
    assert packed.token_ids.tolist() == [first.token_ids[-1], *range(20, 35)]
    assert packed.position_ids.tolist() == [5, *range(15)]
    assert packed.past_lens.tolist() == [5, 0]
    assert packed.subsequence_begins.tolist() == [0, 1, 16]
    assert packed.block_indices_begins.tolist() == [0, 2, 6]
    assert packed.block_indices.tolist() == [*first.block_table[:2], *second.block_table[:4]]
    assert packed.max_context_len == 15
    assert packed.logit_rows.tolist() == [0]


@pytest.mark.parametrize("num_tokens", [1, 4, 5, 96])
def test_fits(num_tokens: int) -> None:
    assert BlockManager(24, 4).fits(num_tokens)
    assert not BlockManager(24, 4).fits(97)
