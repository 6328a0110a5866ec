"""Chat messages, tools and template arguments: what is one, and what is said of what is none."""

from __future__ import annotations

import json
from typing import Any

import pytest

from trident_ensemble.contract.errors import RequestError
from trident_preprocessing.chat.messages import parse_messages, parse_template_kwargs, parse_tools


def test_messages_keep_what_else_they_have() -> None:
    messages = [{"role": "user", "content": "", "name": "Ada"}, {"role": "assistant", "content": "é", "reasoning": "a"}]
    assert parse_messages(json.dumps(messages)) == messages


def test_messages_parts_and_arguments_are_left_as_they_are() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"city": "Rome"}'}}
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two", "more": 1}]
    messages = [{"role": "user", "content": parts}, {"role": "assistant", "content": None, "tool_calls": [call]}]
    assert parse_messages(json.dumps(messages)) == messages


def test_messages_a_message_without_content_has_tool_calls() -> None:
    calls = [{"function": {"name": "f"}}, {"type": "other"}]
    assert parse_messages(json.dumps([{"role": "assistant", "tool_calls": calls}]))[0]["tool_calls"] == calls
    for content in ({}, {"content": None}):
        for no_calls in (None, list[str]()):
            with pytest.raises(RequestError, match=r"^messages: \[0\]\.content must be a text"):
                parse_messages(json.dumps([{"role": "assistant", "tool_calls": no_calls, **content}]))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "is not valid JSON"),
        ("hello", "is not valid JSON"),
        ("[" * 100_000, "is not valid JSON"),
        ("[1" + "0" * 5000 + "]", "is not valid JSON|must be an object"),
        ("{}", "must be a list of at least one message"),
        ("[]", "must be a list of at least one message"),
        ('"user"', "must be a list of at least one message"),
        ("[null]", r"\[0\] must be an object with role and content"),
        ('[{"role": "user", "content": "a"}, "b"]', r"\[1\] must be an object"),
        ('[{"content": "a"}]', r"\[0\]\.role must be a text"),
        ('[{"role": 3, "content": "a"}]', r"\[0\]\.role must be a text"),
        ('[{"role": "", "content": "a"}]', r"\[0\]\.role '' must be at most 64"),
        ('[{"role": "user"}]', r"\[0\]\.content must be a text"),
        ('[{"role": "user", "content": {"text": "a"}}]', r"\[0\]\.content must be a text"),
    ],
)
def test_messages_what_is_no_list_of_messages(text: str, problem: str) -> None:
    with pytest.raises(RequestError, match=f"^messages: ({problem})") as caught:
        parse_messages(text)
    assert '[{"role": "user", "content": "..."}, ...]' in str(caught.value)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("message", "problem"),
    [
        ({"content": ["a"]}, r"\[0\]\.content\[0\] must be a part"),
        ({"content": [{"text": "a"}]}, r"\[0\]\.content\[0\] must be a part"),
        ({"content": [{"type": "text", "text": "a"}, {"type": "text"}]}, r"\[0\]\.content\[1\]\.text must be a text"),
        (
            {"content": [{"type": "image_url", "image_url": {"url": "a"}}]},
            r"\[0\]\.content\[0\]\.type 'image_url' is not supported; only text is",
        ),
        ({"content": [{"type": "a" * 999}]}, r"\[0\]\.content\[0\]\.type 'a{40}' is not supported"),
        ({"content": "a", "tool_calls": {}}, r"\[0\]\.tool_calls must be a list of objects"),
        ({"content": "a", "tool_calls": ["f"]}, r"\[0\]\.tool_calls must be a list of objects"),
    ],
)
def test_messages_what_is_no_message(message: dict[str, Any], problem: str) -> None:
    with pytest.raises(RequestError, match=f"^messages: {problem}") as caught:
        parse_messages(json.dumps([{"role": "user", **message}]))
    assert len(str(caught.value)) < 200


def test_messages_tools_are_left_as_they_are() -> None:
    tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}, {"name": "g"}]
    assert parse_tools(json.dumps(tools)) == tools
    assert parse_tools("[]") is None
    problems = {"": "is not valid JSON", "{}": "must be a list", '[{}, "f"]': r"\[1\] must be an object"}
    for text, problem in problems.items():
        with pytest.raises(RequestError, match=f"^tools: {problem}"):
            parse_tools(text)


def test_messages_template_arguments_take_no_others_place() -> None:
    assert parse_template_kwargs('{"enable_thinking": false, "documents": []}', ())["enable_thinking"] is False
    reserved = ("messages", "tools", "add_generation_prompt", "continue_final_message", "chat_template", "tokenize")
    for name, advice in (
        ("messages", "send the input messages"),
        ("tools", "send the input tools"),
        ("add_generation_prompt", "send the input add_generation_prompt"),
        ("continue_final_message", "send the input continue_final_message"),
        ("chat_template", "only arguments that the template itself reads"),
        ("tokenize", "only arguments that the template itself reads"),
    ):
        with pytest.raises(RequestError, match=f"^chat_template_kwargs: {name} cannot be given here; {advice}"):
            parse_template_kwargs(json.dumps({"a": 1, name: True}), reserved)
    for text, problem in (("{", "is not valid JSON"), ("[]", "must be an object"), ("null", "must be an object")):
        with pytest.raises(RequestError, match=f"^chat_template_kwargs: {problem}"):
            parse_template_kwargs(text, ())
