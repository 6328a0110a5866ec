"""The header goes there and back, and what is not a header is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trident_ensemble.contract.chunk_header import ALL, MAX_MARKERS, VERSION, ChunkHeader, Part, unpack
from trident_ensemble.contract.errors import RequestError

_COUNT = st.integers(0, 2**31)
_PARTS = st.tuples(_COUNT, _COUNT, st.integers(ALL, 2**31)).map(lambda part: Part(part[0] + part[1], *part[1:]))
_HEADERS = st.builds(
    ChunkHeader,
    table_id=st.integers(0, 2**63 - 1),
    column=_COUNT,
    secret=st.integers(0, 2**63 - 1),
    number=_COUNT,
    is_last=st.booleans(),
    skip_special_tokens=st.booleans(),
    parts=st.just((Part(1),)),
    context_ids=st.lists(st.integers(0, 2**31 - 1), max_size=5),
    marker_ids=st.lists(st.integers(0, 2**31 - 1), max_size=MAX_MARKERS),
) | st.builds(
    ChunkHeader,
    table_id=st.just(0),
    column=st.just(0),
    secret=st.just(0),
    number=st.just(0),
    is_last=st.booleans(),
    skip_special_tokens=st.booleans(),
    parts=st.lists(_PARTS, min_size=1, max_size=4).map(tuple),
    context_ids=st.just([]),
    marker_ids=st.lists(st.integers(0, 2**31 - 1), max_size=MAX_MARKERS),
)


@given(_HEADERS)
def test_chunk_header_a_header_comes_back_from_its_integers(header: ChunkHeader) -> None:
    numbers = header.pack()
    assert all(type(number) is int and number < 2**63 for number in numbers)
    assert unpack(numbers) == header


def test_chunk_header_a_part_is_all_text_unless_it_says_otherwise() -> None:
    numbers = ChunkHeader(7, 1, 5, 2, True, False, (Part(3),), [11, 12], [9]).pack()
    assert numbers == [VERSION, 7, 1, 5, 2, 1, 0, 2, 1, 3, 0, -1, 9, 11, 12]


@pytest.mark.parametrize("num_context", [-4, -3, -1, 0, 1, 2, 3, 4, 2**62])
@pytest.mark.parametrize("size", [9, 10, 11, 13, 14])
def test_chunk_header_another_number_of_integers_is_not_a_header(size: int, num_context: int) -> None:
    if num_context in (size - 12, size - 15):
        return
    with pytest.raises(RequestError, match=f"chunk: {size} values are not a header: 9, 3 a sequence, and"):
        unpack([VERSION, 0, 0, 0, 0, 1, 1, num_context, 0, *[0] * (size - 9)])


@pytest.mark.parametrize("num_markers", [-1, 1, MAX_MARKERS + 1, 2**62])
def test_chunk_header_markers_are_as_many_as_it_says(num_markers: int) -> None:
    with pytest.raises(RequestError, match=f"values are not a header: .* {num_markers} of at most 16 markers"):
        unpack([VERSION, 0, 0, 0, 0, 1, 1, 0, num_markers, 3, 0, ALL, *[5] * max(0, min(num_markers, 17) - 1)])


@pytest.mark.parametrize("numbers", [[], [0], [0] * 11, [VERSION - 1, *[0] * 10]])
def test_chunk_header_another_version_is_refused(numbers: list[int]) -> None:
    with pytest.raises(RequestError, match="chunk: must begin with its version, 3"):
        unpack(numbers)


@pytest.mark.parametrize("size", range(1, 9))
def test_chunk_header_a_short_header_is_refused(size: int) -> None:
    with pytest.raises(RequestError, match=f"chunk: must hold at least 9 values, not {size}"):
        unpack([VERSION, *[0] * (size - 1)])


@pytest.mark.parametrize("token_id", [-1, 2**31, 2**62])
def test_chunk_header_what_cannot_be_a_token_id_is_not_context(token_id: int) -> None:
    with pytest.raises(RequestError, match="chunk: context ids must be from 0 to 2147483647"):
        unpack(ChunkHeader(0, 0, 0, 0, True, True, (Part(1),), [5, token_id]).pack())


def test_chunk_header_only_a_response_of_one_sequence_has_context() -> None:
    with pytest.raises(RequestError, match="chunk: must have no context ids"):
        unpack(ChunkHeader(0, 0, 0, 0, True, True, (Part(1), Part(1)), [5]).pack())


@pytest.mark.parametrize("part", [(-1, 0, ALL), (2, 3, ALL), (2, -1, ALL), (2, 0, -2)])
def test_chunk_header_a_part_that_cannot_be_is_refused(part: tuple[int, int, int]) -> None:
    with pytest.raises(RequestError, match="is not a part of a response"):
        unpack([VERSION, 0, 0, 0, 0, 1, 1, 0, 0, 3, 0, ALL, *part])
