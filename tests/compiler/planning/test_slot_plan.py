"""The memory plan of GPUs: what fits into slots, what gives way when it does not, and that no plan overdraws."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trident_compiler.planning.memory_plan import CacheSize, LimitsRequest, parse_bytes
from trident_compiler.planning.slot_plan import SlotNeeds, make_slot_plan
from trident_ensemble.contract.errors import PlanError
from trident_ensemble.contract.manifest import KVKind

#: About Llama 3.1 8B: 128 KiB of keys and values a token.
NEEDS = SlotNeeds(
    weights_bytes=15 << 30,
    fixed_bytes=1 << 29,
    step_token_bytes=1 << 20,
    position_bytes=1 << 17,
    multiple=1,
    max_position_embeddings=131072,
)
SMALL = SlotNeeds(1 << 20, 1 << 20, 1 << 10, 1 << 10, multiple=4, max_position_embeddings=2048)


def test_slot_plan_defaults_fill_the_gpu_with_full_slots() -> None:
    plan = make_slot_plan(LimitsRequest(), NEEDS, 80 << 30)
    assert (plan.max_seq_len, plan.max_num_tokens, plan.kv_kind) == (8192, 2048, KVKind.SLOTS)
    # One row more than a step has tokens: that of a call from which none is wanted. With each, a mask over a slot.
    assert plan.resident_bytes == NEEDS.weights_bytes + NEEDS.fixed_bytes + 2049 * (NEEDS.step_token_bytes + 3 * 8192)
    room = (80 << 30) - plan.resident_bytes
    assert plan.max_num_seqs == plan.num_blocks == plan.full_sequences == int(room * 0.9) // (8193 << 17)
    assert plan.block_size == 8192
    assert plan.block_bytes == 8193 << 17


def test_slot_plan_scores_that_attention_holds_are_of_every_token_and_position() -> None:
    wanted = LimitsRequest(max_num_tokens=100, max_seq_len=1000)
    plain, scored = (make_slot_plan(wanted, needs, 80 << 30) for needs in (NEEDS, replace(NEEDS, score_bytes=256)))
    assert scored.resident_bytes - plain.resident_bytes == 101 * 256 * 1000


def test_slot_plan_small_models_have_256_slots_and_no_more() -> None:
    plan = make_slot_plan(LimitsRequest(), SMALL, 80 << 30)
    assert (plan.max_num_seqs, plan.num_blocks) == (256, 256)


def test_slot_plan_slots_end_at_a_multiple() -> None:
    plan = make_slot_plan(LimitsRequest(max_num_seqs=3, max_seq_len=100), SMALL, 1 << 30)
    assert (plan.max_seq_len, plan.block_size, plan.block_bytes) == (100, 103, 104 << 10)


def test_slot_plan_sequences_are_shortened_for_the_slots_that_were_asked_for_and_not_the_other_way_round() -> None:
    plan = make_slot_plan(LimitsRequest(max_num_seqs=16), NEEDS, 24 << 30)
    assert plan.num_blocks == 16
    assert 512 <= plan.max_seq_len < 8192
    assert (plan.block_size + 2) * 16 << 17 > 0.9 * ((24 << 30) - plan.resident_bytes)
    with pytest.raises(PlanError, match=r"16 slots of 8192 tokens .* 1.00 GiB; 5 fit .*--max-seq-len"):
        make_slot_plan(LimitsRequest(max_num_seqs=16, max_seq_len=8192), NEEDS, 24 << 30)
    with pytest.raises(PlanError, match=r"256 slots of 512 tokens"):
        make_slot_plan(LimitsRequest(max_num_seqs=256), NEEDS, 24 << 30)


def test_slot_plan_the_cache_as_asked() -> None:
    tokens = make_slot_plan(LimitsRequest(cache=CacheSize(num_tokens=2048), max_seq_len=500), SMALL, 1 << 30)
    assert tokens.num_blocks == 4
    shorter = make_slot_plan(LimitsRequest(cache=CacheSize(num_tokens=4000), max_num_seqs=4), SMALL, 1 << 30)
    assert (shorter.num_blocks, shorter.max_seq_len) == (4, 1000)
    share = make_slot_plan(LimitsRequest(cache=CacheSize(share=0.5), max_seq_len=1023), SMALL, 1 << 30)
    assert share.cache_bytes <= ((1 << 30) - share.resident_bytes) // 2 < share.cache_bytes + share.block_bytes or (
        share.num_blocks == 256
    )
    assert (
        make_slot_plan(LimitsRequest(cache=CacheSize(num_bytes=1 << 24), max_seq_len=1023), SMALL, 1 << 30).num_blocks
        == 16
    )


@pytest.mark.parametrize(
    ("wanted", "free", "words"),
    [
        (
            LimitsRequest(),
            15 << 30,
            r"weights: they take 15.00 GiB, a step of 2048 tokens 2.55 GiB.*15.00 GiB.*--weights int8",
        ),
        (
            LimitsRequest(cache=CacheSize(num_bytes=30 << 30)),
            24 << 30,
            r"--kv-cache: 30.00 GiB is more than the 6.45 GiB",
        ),
        (
            LimitsRequest(cache=CacheSize(num_tokens=100), max_seq_len=200),
            24 << 30,
            "--kv-cache: 1 slots of 200 tokens.*100 tok",
        ),
        (LimitsRequest(cache=CacheSize(num_tokens=0)), 24 << 30, "--kv-cache: 1 slots of 512 tokens.* and 0 tokens"),
        (LimitsRequest(cache=CacheSize(num_tokens=1)), 24 << 30, "1 slots of 512 tokens.*t counts tokens.*write 1TiB"),
        (LimitsRequest(max_seq_len=200_000), 24 << 30, "--max-seq-len: 200000 .* 131072"),
        (LimitsRequest(max_num_seqs=0), 24 << 30, "--max-num-seqs"),
        (LimitsRequest(max_num_seqs=64, max_num_tokens=32), 24 << 30, "--max-num-tokens: 32 .* 64"),
    ],
)
def test_slot_plan_refusals_have_numbers(wanted: LimitsRequest, free: int, words: str) -> None:
    with pytest.raises(PlanError, match=words):
        make_slot_plan(wanted, NEEDS, free)


def test_slot_plan_sizes_of_memory() -> None:
    assert parse_bytes("--gpu-memory", "24GiB") == 24 << 30
    with pytest.raises(PlanError, match="--gpu-memory: '24' is not a size"):
        parse_bytes("--gpu-memory", "24")
    for digits in (400, 5000):
        with pytest.raises(PlanError, match=r"--gpu-memory: .* is not a size"):
            parse_bytes("--gpu-memory", "9" * digits + "GiB")


optional = st.none() | st.integers(1, 5_000)
caches = (
    st.none()
    | st.builds(CacheSize, num_bytes=st.integers(0, 2**34))
    | st.builds(CacheSize, num_tokens=st.integers(0, 2**20))
    | st.builds(CacheSize, share=st.just(0.7))
)


wishes = st.builds(LimitsRequest, max_num_seqs=optional, max_num_tokens=optional, max_seq_len=optional, cache=caches)


@given(wishes, st.integers(0, 2**32), st.sampled_from([1, 2, 4, 64]))
def test_slot_plan_a_plan_never_overdraws(wanted: LimitsRequest, free: int, multiple: int) -> None:
    needs = replace(SMALL, multiple=multiple)
    try:
        plan = make_slot_plan(wanted, needs, free)
    except PlanError:
        return
    steps = (plan.max_num_tokens + 1) * needs.step_token_bytes
    assert plan.cache_bytes + needs.weights_bytes + needs.fixed_bytes + steps <= free
    assert 1 <= plan.max_num_seqs == plan.num_blocks <= plan.max_num_tokens
    assert 1 <= plan.max_seq_len <= min(plan.block_size, needs.max_position_embeddings)
    assert (plan.block_size + 1) % multiple == 0
    assert wanted.max_num_seqs in {None, plan.max_num_seqs}
    assert wanted.max_seq_len in {None, plan.max_seq_len}
    if wanted.cache is not None and wanted.cache.num_bytes is not None:
        assert plan.cache_bytes <= wanted.cache.num_bytes
    if wanted.cache is not None and wanted.cache.num_tokens is not None:
        assert plan.num_blocks * plan.max_seq_len <= wanted.cache.num_tokens
