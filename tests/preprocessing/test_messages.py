"""Chat messages: what is one, and what is said of what is none."""

from __future__ import annotations

import json

import pytest

from trident_ensemble.errors import RequestError
from trident_preprocessing.messages import parse_messages


def test_messages_keep_what_else_they_have() -> None:
    messages = [{"role": "user", "content": "", "name": "Ada"}, {"role": "assistant", "content": "é"}]
    assert parse_messages(json.dumps(messages)) == messages


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "not JSON"),
        ("hello", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[1" + "0" * 5000 + "]", "not JSON|must be an object"),
        ("{}", "must be a list of at least one message"),
        ("[]", "must be a list of at least one message"),
        ('"user"', "must be a list of at least one message"),
        ("[null]", r"\[0\] must be an object with role and content"),
        ('[{"role": "user", "content": "a"}, "b"]', r"\[1\] must be an object"),
        ('[{"content": "a"}]', r"\[0\]\.role must be a text"),
        ('[{"role": 3, "content": "a"}]', r"\[0\]\.role must be a text"),
        ('[{"role": "user"}]', r"\[0\]\.content must be a text"),
        ('[{"role": "user", "content": ["a"]}]', r"\[0\]\.content must be a text"),
    ],
)
def test_what_is_no_list_of_messages(text: str, problem: str) -> None:
    with pytest.raises(RequestError, match=f"^messages: ({problem})") as caught:
        parse_messages(text)
    assert '[{"role": "user", "content": "..."}, ...]' in str(caught.value)
    assert len(str(caught.value)) < 300
