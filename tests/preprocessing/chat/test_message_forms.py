"""Messages put in each form that a template may take."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from trident_preprocessing.chat.message_forms import conform
from trident_preprocessing.chat.template_profile import ROLES, ContentForm, NullForm, TemplateProfile

PLAIN = TemplateProfile(
    content=dict.fromkeys(ROLES, ContentForm.TEXT),
    null_content=NullForm.NONE,
    empty_is_null=False,
    arguments_as_text=False,
    takes_developer=False,
    written=(),
)
PARTS = [{"type": "text", "text": "one"}, {"type": "text", "text": "two", "more": 1}]


def content(sent: Any, form: ContentForm) -> Any:
    profile = replace(PLAIN, content=dict.fromkeys(ROLES, form))
    return conform([{"role": "user", "content": sent}], profile)[0]["content"]


def test_message_forms_content() -> None:
    assert content(PARTS, ContentForm.TEXT) == "one\ntwo"
    assert content([], ContentForm.TEXT) == ""
    assert content("a", ContentForm.TEXT) == content("a", ContentForm.EITHER) == "a"
    assert content("a", ContentForm.PARTS) == [{"type": "text", "text": "a"}]
    for form in (ContentForm.PARTS, ContentForm.EITHER):
        assert content(PARTS, form) == PARTS
        assert content([], form) == []


def test_message_forms_each_role_has_a_form_of_its_own() -> None:
    profile = replace(PLAIN, content={**PLAIN.content, "user": ContentForm.EITHER})
    sent = [{"role": role, "content": PARTS} for role in ("system", "user", "judge")]
    assert [message["content"] for message in conform(sent, profile)] == ["one\ntwo", PARTS, PARTS]


@pytest.mark.parametrize(
    ("sent", "as_object", "as_text"),
    [
        ('{"city": "Rome", "n": [1]}', {"city": "Rome", "n": [1]}, '{"city": "Rome", "n": [1]}'),
        ('{"a":1}', {"a": 1}, '{"a":1}'),
        ("{}", {}, "{}"),
        ("", {}, ""),
        ({"city": "東京"}, {"city": "東京"}, '{"city": "東京"}'),
        ('{"city": ', '{"city": ', '{"city": '),
        ("[" * 100_000, "[" * 100_000, "[" * 100_000),
        ("5", "5", "5"),
        (None, None, None),
    ],
)
def test_message_forms_arguments_of_tool_calls(sent: Any, as_object: Any, as_text: Any) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": sent}}
    asked = [{"role": "assistant", "content": None, "tool_calls": [call]}]
    for profile, expected in ((PLAIN, as_object), (replace(PLAIN, arguments_as_text=True), as_text)):
        (message,) = conform(asked, profile)
        assert message["tool_calls"] == [call | {"function": {"name": "f", "arguments": expected}}]
    assert call["function"] == {"name": "f", "arguments": sent}, "what was sent has been changed"


def test_message_forms_calls_without_arguments_stay() -> None:
    calls: list[dict[str, Any]] = [{"function": {"name": "f"}}, {"type": "other"}, {"function": "f"}]
    assert conform([{"role": "assistant", "tool_calls": calls}], PLAIN)[0]["tool_calls"] == calls


@pytest.mark.parametrize("sent", [{}, {"content": None}])
def test_message_forms_no_content(sent: dict[str, Any]) -> None:
    calls = [{"type": "other"}]
    asked = [{"role": "assistant", "tool_calls": calls, "name": None, **sent}]
    forms: list[tuple[NullForm, dict[str, Any]]] = [
        (NullForm.NONE, {"content": None}),
        (NullForm.ABSENT, {}),
        (NullForm.EMPTY, {"content": ""}),
    ]
    for null, content in forms:
        (message,) = conform(asked, replace(PLAIN, null_content=null))
        assert message == {"role": "assistant", "tool_calls": calls, **content}


@pytest.mark.parametrize("blank", ["", " \n", [], None])
def test_message_forms_an_empty_text_beside_calls(blank: Any) -> None:
    profile = replace(PLAIN, empty_is_null=True)
    asked = [{"role": "assistant", "content": blank, "tool_calls": [{"type": "other"}]}]
    assert conform(asked, profile)[0]["content"] is None
    assert conform([{"role": "assistant", "content": "a", "tool_calls": [{}]}], profile)[0]["content"] == "a"
    if blank is not None:
        assert conform([{"role": "assistant", "content": blank}], profile)[0]["content"] in ("", " \n")


def test_message_forms_the_developer() -> None:
    asked = [{"role": "developer", "content": "a"}]
    assert conform(asked, PLAIN) == [{"role": "system", "content": "a"}]
    assert conform(asked, replace(PLAIN, takes_developer=True)) == asked
