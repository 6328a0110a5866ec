"""The model card: what is rendered is read again, and what is no card is refused by key."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trident_ensemble.contract.errors import ConfigError
from trident_ensemble.contract.model_card import Marker, ModelCard, Reasoning, ToolFormat, parse_card, render_card

NAMES = st.from_regex(r"\A[A-Za-z0-9][A-Za-z0-9._:/-]{0,127}\Z")
MARKERS = st.builds(Marker, st.text(), st.none() | st.integers(0, 2**31))
CARDS = st.builds(
    ModelCard,
    name=NAMES,
    created=st.integers(0, 2**40),
    max_seq_len=st.integers(1, 2**31),
    digest=st.text("0123456789abcdef"),
    aliases=st.lists(NAMES, max_size=3).map(tuple),
    takes_messages=st.booleans(),
    takes_tools=st.booleans(),
    tool_format=st.none() | st.sampled_from(ToolFormat),
    tool_markers=st.dictionaries(st.sampled_from(["start", "end", "arguments"]), MARKERS),
    reasoning=st.none() | st.builds(Reasoning, MARKERS, MARKERS, st.booleans()),
)
SMALLEST = {"name": "demo", "created": 0, "max_seq_len": 8}


@given(CARDS)
def test_model_card_is_read_as_it_was_rendered(card: ModelCard) -> None:
    text = render_card(card)
    assert "\n" not in text
    assert parse_card(text) == card


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"nme": "x"}, r"model_card\.nme"),
        ({"name": "a b"}, r"model_card\.name: 'a b'"),
        ({"name": None}, r"model_card\.name"),
        ({"aliases": [1]}, r"model_card\.name: 1"),
        ({"aliases": 1}, "model_card"),
        ({"created": "now"}, "created"),
        ({"max_seq_len": True}, "max_seq_len"),
        ({"takes_tools": 1}, "takes_tools"),
        ({"tool_format": "other"}, "other"),
        ({"tool_markers": {"start": {"txt": "<"}}}, r"model_card\.tool_markers\.start\.txt"),
        ({"tool_markers": {"start": {"text": 1}}}, r"model_card\.tool_markers\.start"),
        ({"tool_markers": []}, "model_card"),
        ({"reasoning": {"start": {"text": "<think>"}}}, "end"),
        ({"reasoning": []}, r"model_card\.reasoning"),
    ],
)
def test_model_card_what_is_none_is_refused_by_key(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        parse_card(json.dumps({**SMALLEST, **change}))


@pytest.mark.parametrize("text", ["", "[]", "{}", "null", "[" * 10_000, '{"name": "x"'])
def test_model_card_what_is_no_object_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="model_card"):
        parse_card(text)
