"""The memory plan: sizes as people write them, defaults, refusals with numbers, and that no plan overdraws."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trident_compiler.planning.memory_plan import (
    CacheSize,
    LimitsRequest,
    MemoryKind,
    MemoryRequirements,
    make_plan,
    parse_cache_size,
    size,
)
from trident_ensemble.contract.errors import PlanError

NEEDS = MemoryRequirements(
    weights_bytes=2**27, resident_bytes=2**28, block_size=32, block_bytes=2**20, max_position_embeddings=4096
)
FREE = 2**33


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2GiB", CacheSize(num_bytes=2**31)),
        ("1.5 GB", CacheSize(num_bytes=1_500_000_000)),
        ("512mib", CacheSize(num_bytes=2**29)),
        ("100B", CacheSize(num_bytes=100)),
        ("32768 tokens", CacheSize(num_tokens=32768)),
        ("32768t", CacheSize(num_tokens=32768)),
        ("50%", CacheSize(share=0.5)),
    ],
)
def test_memory_plan_sizes(text: str, expected: CacheSize) -> None:
    assert parse_cache_size(text) == expected


@pytest.mark.parametrize(
    "text", ["", "2", "2G", "-1GiB", "0%", "101%", "lots", "1e9B", *("9" * 5000 + unit for unit in ("t", "B", "%"))]
)
def test_memory_plan_what_is_no_size(text: str) -> None:
    with pytest.raises(PlanError, match="--kv-cache"):
        parse_cache_size(text)


@pytest.mark.parametrize(
    ("wanted", "option"),
    [
        (LimitsRequest(max_num_seqs=10**400), "--max-num-seqs"),
        (LimitsRequest(max_num_tokens=10**400), "--max-num-tokens"),
        (LimitsRequest(max_seq_len=2**31), "--max-seq-len"),
    ],
)
def test_memory_plan_limits_that_no_int32_holds_are_refused(wanted: LimitsRequest, option: str) -> None:
    with pytest.raises(PlanError, match=f"{option}: must be at most 2147483647"):
        make_plan(wanted, NEEDS, FREE)


def test_memory_plan_a_cache_of_no_token_is_refused() -> None:
    with pytest.raises(PlanError, match=r"--kv-cache: .* holds 0 tokens"):
        make_plan(LimitsRequest(cache=CacheSize(num_tokens=0)), NEEDS, FREE)


def test_memory_plan_the_cache_as_asked() -> None:
    assert make_plan(LimitsRequest(cache=CacheSize(num_bytes=2**30)), NEEDS, FREE).num_blocks == 1024
    assert (
        make_plan(LimitsRequest(cache=CacheSize(num_tokens=33 * 32 - 1), max_seq_len=64), NEEDS, FREE).num_blocks == 33
    )
    half = make_plan(LimitsRequest(cache=CacheSize(share=0.5)), NEEDS, FREE)
    assert half.cache_bytes == (FREE - NEEDS.resident_bytes) // 2


def test_memory_plan_defaults_need_no_more_than_all_sequences_can_use() -> None:
    plan = make_plan(LimitsRequest(max_num_seqs=2, max_seq_len=100), NEEDS, FREE)
    assert (plan.num_blocks, plan.full_sequences) == (8, 2)


def test_memory_plan_another_kind_of_memory_has_its_own_defaults_and_words() -> None:
    kind = MemoryKind(max_num_tokens=2048, cache_share=0.9, contents="weights and more", remedy="take a larger GPU")
    plan = make_plan(LimitsRequest(), NEEDS, FREE, kind)
    assert plan.max_num_tokens == 2048
    assert plan.num_blocks == int((FREE - NEEDS.resident_bytes) * 0.9) // NEEDS.block_bytes
    with pytest.raises(PlanError, match=r"^weights and more: they take .*; take a larger GPU$"):
        make_plan(LimitsRequest(), NEEDS, 2**27, kind)
    with pytest.raises(PlanError, match=r"--kv-cache: .* of weights and more is more than"):
        make_plan(LimitsRequest(cache=CacheSize(num_bytes=2**34)), NEEDS, FREE, kind)


def test_memory_plan_little_memory_shortens_sequences_unless_their_length_was_asked_for() -> None:
    free = NEEDS.resident_bytes + 100 * NEEDS.block_bytes
    assert make_plan(LimitsRequest(), NEEDS, free).max_seq_len == 40 * 32
    with pytest.raises(PlanError, match=r"1280 tokens \(40 blocks of 32\).*4096.*128.00 MiB.*--max-seq-len"):
        make_plan(LimitsRequest(max_seq_len=4096), NEEDS, free)


@pytest.mark.parametrize("text", ["1t", "1 T", "31 tokens", "511t", "500MB", "1B"])
def test_memory_plan_a_cache_too_small_to_be_meant_is_refused(text: str) -> None:
    cache = parse_cache_size(text)
    needs = MemoryRequirements(2**27, 2**28, block_size=32, block_bytes=2**25, max_position_embeddings=4096)
    with pytest.raises(
        PlanError, match=r"--kv-cache: .*not one sequence of 512.*--max-seq-len for shorter ones"
    ) as said:
        make_plan(LimitsRequest(cache=cache), needs, FREE)
    assert ("t counts tokens; if tebibytes were meant, write" in str(said.value)) == (cache.num_tokens is not None)


def test_memory_plan_a_small_cache_that_is_meant_is_built() -> None:
    wanted = LimitsRequest(max_seq_len=16, cache=CacheSize(num_tokens=16))
    assert make_plan(wanted, NEEDS, FREE).num_blocks == 1
    with pytest.raises(PlanError, match=r"holds 16 tokens .*one sequence of 17, .* lower --max-seq-len"):
        make_plan(LimitsRequest(max_seq_len=17, cache=CacheSize(num_tokens=16)), NEEDS, FREE)
    short = MemoryRequirements(2**27, 2**28, block_size=32, block_bytes=2**20, max_position_embeddings=128)
    assert make_plan(LimitsRequest(cache=CacheSize(num_tokens=128)), short, FREE).max_seq_len == 128


def test_memory_plan_sequences_are_no_longer_than_the_tokens_asked_for() -> None:
    plan = make_plan(LimitsRequest(cache=CacheSize(num_tokens=1000)), NEEDS, FREE)
    assert (plan.max_seq_len, plan.cache_tokens) == (1000, 1024)


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        (LimitsRequest(max_seq_len=5000), "--max-seq-len: 5000 .* 4096"),
        (LimitsRequest(max_num_seqs=0), "--max-num-seqs"),
        (LimitsRequest(max_num_seqs=64, max_num_tokens=32), "--max-num-tokens: 32 .* 64"),
        (LimitsRequest(cache=CacheSize(num_bytes=2**34)), "--kv-cache: 16.00 GiB .* 8.00 GiB"),
        (LimitsRequest(cache=CacheSize(num_bytes=1)), "--kv-cache: 0 B holds 0 tokens"),
    ],
)
def test_memory_plan_refusals_have_numbers(wanted: LimitsRequest, words: str) -> None:
    with pytest.raises(PlanError, match=words):
        make_plan(wanted, NEEDS, FREE)


def test_memory_plan_weights_that_do_not_fit() -> None:
    with pytest.raises(PlanError, match=r"256.00 MiB.*128.00 MiB.*--weights int8"):
        make_plan(LimitsRequest(), NEEDS, 2**27)


optional = st.none() | st.integers(1, 10_000)
caches = st.none() | st.builds(CacheSize, num_bytes=st.integers(0, 2**34)) | st.builds(CacheSize, share=st.just(0.7))


@given(optional, optional, optional, caches, st.integers(0, 2**34))
def test_memory_plan_a_plan_never_overdraws(
    seqs: int | None, tokens: int | None, length: int | None, cache: CacheSize | None, free: int
) -> None:
    try:
        plan = make_plan(LimitsRequest(seqs, tokens, length, cache), NEEDS, free)
    except PlanError:
        return
    assert plan.cache_bytes + NEEDS.resident_bytes <= free
    assert plan.full_sequences >= 1
    assert 1 <= plan.max_num_seqs <= min(plan.max_num_tokens, plan.num_blocks if seqs is None else 10_000)
    assert 1 <= plan.max_seq_len <= NEEDS.max_position_embeddings


def test_memory_plan_sizes_for_people() -> None:
    assert [size(value) for value in (5, 2048, 3 * 2**20, 2**31)] == ["5 B", "2.00 KiB", "3.00 MiB", "2.00 GiB"]
