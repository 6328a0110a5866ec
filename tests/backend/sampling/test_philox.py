"""The batched random numbers against numpy's own generator."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from trident_backend.sampling.philox import uniforms

WORDS = st.integers(0, 2**64 - 1) | st.sampled_from([0, 1, 2**32 - 1, 2**32, 2**63, 2**64 - 1])


@given(st.lists(st.tuples(WORDS, WORDS, st.integers(0, 2**40)), min_size=1, max_size=9), st.integers(0, 50))
def test_philox_they_are_those_of_numpys_philox(rows: list[tuple[int, int, int]], attempt: int) -> None:
    expected = []
    for seed, index, place in rows:
        key, counter = np.array([seed, index], np.uint64), np.array([place, attempt, 0, 0], np.uint64)
        expected.append(np.random.Generator(np.random.Philox(key=key, counter=counter)).random())
    seeds, indices, places = (np.array(column, np.uint64) for column in zip(*rows, strict=True))
    assert uniforms(seeds, indices, places, attempt).tolist() == expected
