"""The same answers, read by transformers' parser, and written by Mistral's own code."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings
from mistral_common.protocol.instruct.messages import AssistantMessage
from mistral_common.protocol.instruct.tool_calls import FunctionCall, ToolCall
from mistral_common.tokens.tokenizers.mistral import MistralTokenizer
from transformers.utils.chat_parsing import parse_response

from tests.gateway.tool_calls.models import MISTRAL, QWEN3, TOOLS, joined, pieces, written
from trident_ensemble.contract.model_card import Marker
from trident_gateway.tool_calls.answer_parser import AnswerParser
from trident_gateway.tool_calls.guides import plan_tools
from trident_gateway.tool_calls.tools import ToolChoice

pytestmark = pytest.mark.slow

_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.sampled_from(["}", '"', "\\", "[TOOL_CALLS]"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=4), inner, max_size=2),
    max_leaves=6,
)
_CALLS = st.lists(
    st.tuples(st.sampled_from(["get_weather", "get-time"]), st.dictionaries(st.text(max_size=5), _VALUES, max_size=3)),
    max_size=3,
)

#: How transformers is told of the format of Qwen 3.
_QWEN3: dict[str, Any] = {
    "start_anchor": "<|im_start|>assistant\n",
    "fields": {
        "reasoning": {"open": "<think>", "close": "</think>"},
        "calls": {"open": "<tool_call>", "close": "</tool_call>", "content": "json", "repeats": True},
        "content": {"close": "<|im_end|>", "repeats": True, "join": ""},
    },
}


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(["", "hm", "a < b"]), st.sampled_from(["", "Let me see.", "{x}"]), _CALLS, st.data())
def test_answers_of_qwen3_are_read_as_by_transformers(
    reasoning: str, content: str, calls: list[tuple[str, dict[str, Any]]], data: st.DataObject
) -> None:
    """Reasoning, content, names and arguments."""
    answer = f"<think>\n{reasoning}\n</think>\n\n" if reasoning else ""
    answer += content
    for name, arguments in calls:
        answer += written(QWEN3, name, json.dumps(arguments, ensure_ascii=data.draw(st.booleans())), is_last=False)
    parser = AnswerParser(QWEN3, plan_tools(QWEN3, TOOLS, ToolChoice()))
    events = [event for piece in pieces(QWEN3, answer, range(len(answer))) for event in parser.feed(*piece)]
    mine = joined([*events, *parser.finish()])
    message = parse_response(answer, _QWEN3, prefix="")
    theirs = [(call["name"], call["arguments"]) for call in message.get("calls", [])]
    assert mine[:2] == (message.get("content", "").strip(), message.get("reasoning", ""))
    assert [(name, json.loads(arguments)) for name, arguments in mine[2]] == theirs == calls


@cache
def _mistral(version: str) -> Any:
    made = {"v3": lambda: MistralTokenizer.v3(is_tekken=True), "v7": MistralTokenizer.v7}
    return made[version]().instruct_tokenizer


@pytest.mark.parametrize("version", ["v3", "v7"])
@settings(max_examples=40, deadline=None)
@given(_CALLS.filter(bool), st.data())
def test_calls_written_by_mistrals_own_code_are_read(
    version: str, calls: list[tuple[str, dict[str, Any]]], data: st.DataObject
) -> None:
    """Its tokens, one by one: the marker by its id, and the list of calls with their ids."""
    writer = _mistral(version)
    tokenizer = writer.tokenizer
    message = AssistantMessage(
        tool_calls=[
            ToolCall(id="abcdefghi", function=FunctionCall(name=name, arguments=json.dumps(arguments)))
            for name, arguments in calls
        ]
    )
    start, *token_ids, end = writer.encode_assistant_message(message, False)
    assert end == tokenizer.eos_id
    card = replace(MISTRAL, tool_markers={"start": Marker("[TOOL_CALLS]", start)})
    parser = AnswerParser(card, plan_tools(card, TOOLS, ToolChoice()))
    text = tokenizer.decode(token_ids)
    cut = data.draw(st.integers(0, len(text)))
    events = [*parser.feed("", [(0, start)]), *parser.feed(text[:cut]), *parser.feed(text[cut:]), *parser.finish()]
    content, reasoning, read = joined(events)
    assert (content, reasoning) == ("", "")
    assert [(name, json.loads(arguments)) for name, arguments in read] == calls
