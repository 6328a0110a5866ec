"""Events come out as they went in, wherever the network cuts them."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trident_gateway.upstream import events
from trident_gateway.upstream.events import EventCutter, GenerateEvent, MalformedEventError, as_list, as_rows

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
RESPONSES = st.fixed_dictionaries(
    {"text_output": TEXTS | st.lists(TEXTS, min_size=2, max_size=3)},
    optional={
        "output_ids": st.integers(0, 2**31 - 1) | st.lists(st.integers(0, 2**31 - 1), max_size=3),
        "output_log_probs": st.floats(-1e9, 0) | st.lists(st.floats(-1e9, 0), min_size=2, max_size=3),
        "used_seed": st.integers(0, 2**64 - 1),
        "finish_reason": st.sampled_from(["eos", "length"]),
        "model_name": TEXTS,
        "unknown": st.none() | st.booleans() | st.dictionaries(TEXTS, TEXTS, max_size=2),
    },
)


def _wire(responses: list[dict[str, Any]]) -> bytes:
    return b"".join(b"data: %b\n\n" % json.dumps(response, ensure_ascii=False).encode() for response in responses)


def _known(response: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in response.items() if key in GenerateEvent.__struct_fields__}


def _shown(event: GenerateEvent) -> dict[str, Any]:
    return {key: value for key, value in msgspec.structs.asdict(event).items() if value is not None}


@given(st.lists(RESPONSES, max_size=4), st.data())
def test_cutting_any_pieces_give_the_same_events(responses: list[dict[str, Any]], data: st.DataObject) -> None:
    wire = _wire(responses)
    cuts = sorted(data.draw(st.sets(st.integers(1, max(1, len(wire) - 1)))))
    cutter = EventCutter()
    out: list[GenerateEvent] = []
    for begin, end in zip([0, *cuts], [*cuts, len(wire)], strict=True):
        out += cutter.feed(wire[begin:end])
    assert [_shown(event) for event in out] == [_known(response) for response in responses]
    assert cutter.is_at_border


def test_cutting_at_every_single_byte() -> None:
    responses: list[dict[str, Any]] = [
        {"text_output": "ä\n\n€"},
        {"text_output": "data: "},
        {"text_output": "", "output_ids": []},
    ]
    wire = _wire(responses)
    for cut in range(len(wire) + 1):
        cutter = EventCutter()
        out = [*cutter.feed(wire[:cut]), *cutter.feed(wire[cut:])]
        assert [_shown(event) for event in out] == responses
    cutter = EventCutter()
    assert len([event for index in range(len(wire)) for event in cutter.feed(wire[index : index + 1])]) == 3


def test_cutting_knows_an_event_without_its_end() -> None:
    cutter = EventCutter()
    assert not cutter.feed(b'data: {"text_output": "a"}\n')
    assert not cutter.is_at_border


@pytest.mark.parametrize(
    "block",
    [
        b"event: x\n\n", b"\n\n", b"data: \n\n", b"data: [1]\n\n", b'data: {"text_output": 1}\n\n',
        b'data: {"output_ids": "x"}\n\n', b'data: {"text_output": "\xff"}\n\n', b"data: " + b"[" * 100_000 + b"\n\n",
        b'data: {"unknown": ' + b"[" * 100_000 + b"\n\n",
    ],
)  # fmt: skip
def test_cutting_refuses_what_is_no_response(block: bytes) -> None:
    with pytest.raises(MalformedEventError):
        EventCutter().feed(block)


def test_cutting_holds_no_more_than_one_event_may_be_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "MAX_EVENT_BYTES", 1000)
    cutter = EventCutter()
    for _ in range(10):
        cutter.feed(b"x" * 100)
    with pytest.raises(MalformedEventError, match="more than 1000 bytes"):
        cutter.feed(b"x")


def test_cutting_takes_time_in_proportion_to_the_bytes() -> None:
    """A long event in small pieces is searched once, not once for each piece."""
    cutter = EventCutter()
    wire = b'data: {"text_output": "' + b"x" * (8 << 20) + b'"}\n\n'
    out = [event for begin in range(0, len(wire), 4096) for event in cutter.feed(wire[begin : begin + 4096])]
    assert len(out) == 1


@pytest.mark.parametrize(("value", "elements"), [(None, []), (7, [7]), ([], []), ([1, 2], [1, 2]), ("", [""])])
def test_as_list_makes_one_form_of_both(value: Any, elements: list[Any]) -> None:
    assert as_list(value) == elements


def test_as_rows_divides_what_triton_has_flattened() -> None:
    four: int | list[int] | None = [1, 2, 3, 4]
    assert as_rows(four, 2) == [[1, 2], [3, 4]]
    assert as_rows(5, 1) == [[5]]
    assert as_rows(None, 2) == [[], []]
    assert as_rows(None, 0) == []
    with pytest.raises(MalformedEventError):
        as_rows(four, 3)
