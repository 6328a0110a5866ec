"""The steps by which captured sizes are tried lie within an engine's limits, and have what they are tried for."""

from __future__ import annotations

import random

import numpy as np

from trident_backend.engine.cuda.graphs import sizes_up_to
from trident_backend.engine.cuda.trial_steps import TrialSteps, spread_rows
from trident_backend.engine.gpu.attention_plan import AttentionPlan, AttentionPlanner
from trident_backend.engine.gpu.program import AttentionKind
from trident_backend.engine.protocol import EngineSpec, StepBatch

KERNELS = ("write", "few", "many", "merge_few", "merge_many")
#: Tokens of a small tile.
FEW_LENS = (1, 4, 16)


def plan_of(batch: StepBatch, few_len: int = 4) -> AttentionPlan:
    kind = AttentionKind(2, 4, 16, 16, 0, 4 * few_len, 64, *KERNELS)
    planner = AttentionPlanner(kind, 64)
    return planner.plan(batch.past_lens, batch.subsequence_begins, batch.block_indices_begins)


def check(batch: StepBatch, num_tokens: int, spec: EngineSpec) -> None:
    """Refuse a step that no scheduler would make: blocks are written by one sequence alone, but for the first."""
    lens = np.diff(batch.subsequence_begins)
    ends = batch.past_lens + lens
    assert lens.min() >= 1
    assert len(lens) <= spec.max_num_seqs
    assert batch.past_lens.min() >= 0
    assert len(batch.token_ids) == lens.sum() <= num_tokens
    assert ends.max() == batch.max_context_len <= spec.max_seq_len
    assert np.array_equal(np.diff(batch.block_indices_begins), -(-ends // spec.block_size))
    assert batch.block_indices.max() < spec.num_blocks
    assert not (batch.past_lens % spec.block_size).any()
    written = []
    for table, past_len in zip(
        np.split(batch.block_indices, batch.block_indices_begins[1:-1]), batch.past_lens // spec.block_size, strict=True
    ):
        assert not table[:past_len].any()
        written += table[past_len:].tolist()
    assert sorted(written) == list(range(1, len(written) + 1))
    positions = np.concatenate([np.arange(p, e) for p, e in zip(batch.past_lens, ends, strict=True)])
    assert np.array_equal(batch.position_ids, positions)
    assert batch.token_ids.min() >= 0
    assert batch.token_ids.max() < spec.vocab_size
    assert (np.diff(batch.logit_rows) >= 0).all()
    assert 0 <= batch.logit_rows.min() <= batch.logit_rows.max() == lens.sum() - 1


def test_cuda_trial_steps_lie_within_any_limits() -> None:
    draw = random.Random(7)  # noqa: S311
    num_found = 0
    for _ in range(120):
        max_num_seqs = draw.choice([1, 2, 7, 64])
        block_size, max_seq_len = draw.choice([1, 8, 32]), draw.choice([8, 100, 5000])
        num_blocks = -(-max_seq_len // block_size) + draw.choice([0, 1, 50])
        max_num_tokens = max(max_num_seqs, draw.choice([1, 16, 100, 700]))
        spec = EngineSpec(50, max_num_seqs, max_num_tokens, max_seq_len, block_size, num_blocks)
        few_len = draw.choice(FEW_LENS)
        steps = TrialSteps(spec, few_len)
        for size in sizes_up_to(max_num_tokens):
            few, many = steps.without_prompt(size), steps.with_prompt(size)
            if few is not None:
                check(few, size, spec)
                assert not len(plan_of(few, few_len).many)
                num_found += 1
            if many is not None:
                check(many, size, spec)
                assert len(plan_of(many, few_len).many)
                num_found += 1
    assert num_found > 300


def test_cuda_trial_steps_fill_their_size_where_the_limits_allow_it() -> None:
    steps = TrialSteps(EngineSpec(50, 256, 2048, 8192, 32, 4000), 4)
    for size in sizes_up_to(2048):
        few, many = steps.without_prompt(size), steps.with_prompt(size)
        assert few is not None
        assert len(few.token_ids) == size
        assert (many is None) == (size <= 4)
        assert many is None or len(many.token_ids) == size


def test_cuda_trial_steps_have_tiles_whose_keys_are_divided() -> None:
    steps = TrialSteps(EngineSpec(50, 16, 512, 2048, 32, 400), 4)
    few, many = steps.without_prompt(16), steps.with_prompt(64)
    assert few is not None
    assert many is not None
    assert len(plan_of(few).merges_few)
    assert len(plan_of(many).merges_many)


def test_cuda_trial_steps_rows_are_spread() -> None:
    assert spread_rows(8, 4).tolist() == [1, 3, 5, 7]
    assert spread_rows(3, 5).tolist() == [0, 0, 0, 1, 2]
    assert spread_rows(5, 5).tolist() == [0, 1, 2, 3, 4]


def test_cuda_trial_steps_sizes_end_with_the_largest_step_or_the_largest_graph() -> None:
    assert sizes_up_to(1) == (1,)
    assert sizes_up_to(20) == (1, 2, 4, 8, 16, 20)
    assert sizes_up_to(512)[-2:] == (384, 512)
    assert sizes_up_to(513)[-2:] == (384, 512)
