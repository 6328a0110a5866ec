"""The counts of a growing sequence against those of the whole."""

from __future__ import annotations

import tracemalloc
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trident_backend.sequences.token_counts import TokenCounts

TOKENS = st.lists(st.integers(0, 12), max_size=12)


@given(TOKENS, st.lists(st.tuples(TOKENS, TOKENS), max_size=6))
def test_token_counts_at_every_time_they_are_those_of_the_whole(
    prompt: list[int], steps: list[tuple[list[int], list[int]]]
) -> None:
    counts, token_ids = TokenCounts(prompt, 1.5, 0.25, 2.0), list(prompt)
    for output, drafts in steps:
        token_ids += output
        counts.follow(token_ids)
        for draft_ids in (drafts, []):
            repetition, seen_ids, counted_ids, offsets, _ = counts.penalties(draft_ids)
            assert repetition == 1.5
            assert sorted(seen_ids.tolist()) == sorted({*token_ids, *draft_ids})
            assert len(set(counted_ids.tolist())) == len(counted_ids)
            expected = Counter(token_ids[len(prompt) :] + draft_ids)
            found = dict(zip(counted_ids.tolist(), offsets.tolist(), strict=True))
            assert found == {token_id: 0.25 + 2 * times for token_id, times in expected.items()}


@pytest.mark.parametrize(("repetition", "frequency"), [(1.5, 0.0), (1.0, 0.5)])
def test_token_counts_tokens_that_are_not_penalised_are_not_named(repetition: float, frequency: float) -> None:
    counts = TokenCounts([1, 2], repetition, 0.0, frequency)
    counts.follow([1, 2, 3])
    for drafts in ((), (3, 4)):
        _, seen_ids, counted_ids, _, history = counts.penalties(drafts)
        assert seen_ids.tolist() == ([1, 2, 3, *drafts[1:]] if repetition != 1 else [])
        assert counted_ids.tolist() == ([3, *drafts[1:]] if frequency else [])
        assert history is (None if drafts else counts)


def test_token_counts_many_tokens_are_counted_in_arrays_that_grow() -> None:
    token_ids = [index % 700 for index in range(5000)]
    counts = TokenCounts(token_ids[:3], 2.0, 0.0, 1.0)
    for end in range(4, len(token_ids) + 1):
        counts.follow(token_ids[:end])
    _, seen_ids, counted_ids, offsets, _ = counts.penalties()
    assert sorted(seen_ids.tolist()) == list(range(700))
    assert dict(zip(counted_ids.tolist(), offsets.tolist(), strict=True)) == Counter(token_ids[3:])


def test_token_counts_a_token_costs_the_same_however_long_the_prompt_is() -> None:
    """By what is allocated, as time says little: a copy of what was known before would be 8 bytes a token."""
    token_ids = list(range(50_000))
    counts = TokenCounts(token_ids, 1.1, 0.1, 0.1)
    token_ids += [1, 60_000, 60_001]
    counts.follow(token_ids)
    tracemalloc.start()
    try:
        for token_id in (5, 60_000, 60_002):
            token_ids.append(token_id)
            counts.follow(token_ids)
            counts.penalties()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4000
