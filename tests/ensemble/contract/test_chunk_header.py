"""The header goes there and back, and what is none is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trident_ensemble.contract.chunk_header import ALL, ChunkHeader, Part, unpack
from trident_ensemble.contract.errors import RequestError

_COUNT = st.integers(0, 2**31)
_PARTS = st.tuples(_COUNT, _COUNT, st.integers(ALL, 2**31)).map(lambda part: Part(part[0] + part[1], *part[1:]))
_HEADERS = st.builds(
    ChunkHeader,
    table_id=st.integers(0, 2**63 - 1),
    slot=_COUNT,
    secret=st.integers(0, 2**63 - 1),
    number=_COUNT,
    is_last=st.booleans(),
    skip_special_tokens=st.booleans(),
    parts=st.lists(_PARTS, min_size=1, max_size=4).map(tuple),
)


@given(_HEADERS)
def test_a_header_comes_back_from_its_integers(header: ChunkHeader) -> None:
    numbers = header.pack()
    assert all(type(number) is int and number < 2**63 for number in numbers)
    assert unpack(numbers) == header


def test_a_part_is_all_text_unless_it_says_otherwise() -> None:
    assert ChunkHeader(7, 1, 5, 2, True, False, (Part(3),)).pack() == [7, 1, 5, 2, 1, 0, 3, 0, -1]


@pytest.mark.parametrize("size", [0, 5, 6, 7, 8, 10, 11])
def test_another_number_of_integers_is_no_header(size: int) -> None:
    with pytest.raises(RequestError, match=f"chunk: {size} values are no header: 6 and 3 a sequence"):
        unpack([0] * size)


@pytest.mark.parametrize("part", [(-1, 0, ALL), (2, 3, ALL), (2, -1, ALL), (2, 0, -2)])
def test_a_part_that_cannot_be_is_refused(part: tuple[int, int, int]) -> None:
    with pytest.raises(RequestError, match="is no part of a response"):
        unpack([0, 0, 0, 0, 1, 1, 3, 0, ALL, *part])
