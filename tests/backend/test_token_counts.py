"""The counts of a growing sequence against those of the whole."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from trident_backend.sampling.token_counts import TokenCounts

TOKENS = st.lists(st.integers(0, 12), max_size=12)


@given(st.lists(st.integers(0, 12), min_size=1, max_size=12), st.lists(st.tuples(TOKENS, TOKENS), max_size=6))
def test_at_every_time_they_are_those_of_the_whole(prompt: list[int], steps: list[tuple[list[int], list[int]]]) -> None:
    counts, token_ids = TokenCounts(len(prompt)), list(prompt)
    for output, drafts in steps:
        token_ids += output
        counts.see(token_ids)
        for guessed in (drafts, []):
            ids, numbers = counts.after(guessed)
            assert sorted(ids.tolist()) == sorted({*token_ids, *guessed})
            expected = Counter(token_ids[len(prompt) :] + guessed)
            assert dict(zip(ids.tolist(), numbers.tolist(), strict=True)) == {i: expected[i] for i in ids.tolist()}


def test_a_prompt_that_comes_in_pieces_is_not_counted() -> None:
    counts = TokenCounts(5)
    for token_ids in ([1, 2], [1, 2, 3, 1, 1], [1, 2, 3, 1, 1, 2]):
        counts.see(token_ids)
    ids, numbers = counts.after()
    assert dict(zip(ids.tolist(), numbers.tolist(), strict=True)) == {1: 0, 2: 1, 3: 0}
