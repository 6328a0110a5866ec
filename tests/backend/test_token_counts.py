"""The counts of a growing sequence against those of the whole."""

from __future__ import annotations

import tracemalloc
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from trident_backend.sampling.token_counts import TokenCounts

TOKENS = st.lists(st.integers(0, 12), max_size=12)


@given(TOKENS, st.lists(st.tuples(TOKENS, TOKENS), max_size=6))
def test_at_every_time_they_are_those_of_the_whole(prompt: list[int], steps: list[tuple[list[int], list[int]]]) -> None:
    counts, token_ids = TokenCounts(prompt), list(prompt)
    for output, drafts in steps:
        token_ids += output
        counts.follow(token_ids)
        for guessed in (drafts, []):
            assert sorted(counts.seen(guessed).tolist()) == sorted({*token_ids, *guessed})
            ids, numbers = counts.counted(guessed)
            assert len(set(ids.tolist())) == len(ids)
            assert dict(zip(ids.tolist(), numbers.tolist(), strict=True)) == Counter(token_ids[len(prompt) :] + guessed)


def test_many_tokens_are_counted_in_arrays_that_grow() -> None:
    token_ids = [index % 700 for index in range(5000)]
    counts = TokenCounts(token_ids[:3])
    for end in range(4, len(token_ids) + 1):
        counts.follow(token_ids[:end])
    assert sorted(counts.seen().tolist()) == list(range(700))
    ids, numbers = counts.counted()
    assert dict(zip(ids.tolist(), numbers.tolist(), strict=True)) == Counter(token_ids[3:])


def test_a_token_costs_the_same_however_long_the_prompt_is() -> None:
    """By what is allocated, as time says little: a copy of what was known before would be 8 bytes a token."""
    token_ids = list(range(50_000))
    counts = TokenCounts(token_ids)
    token_ids += [1, 60_000, 60_001]
    counts.follow(token_ids)
    tracemalloc.start()
    try:
        for token_id in (5, 60_000, 60_002):
            token_ids.append(token_id)
            counts.follow(token_ids)
            counts.seen()
            counts.counted()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4000
