"""The matrix of tool calls: tool_choice x strict x parallel x stream x end, each cell with its exact answer."""

from __future__ import annotations

import itertools
import json
from typing import Any, NamedTuple

import pytest

from tests.fakes.gateway_upstream import FakeRouter, Script, SpokenAnswer, Token, tokens_of
from tests.gateway.api.client import ApiClient, chat_body, joined_chat
from tests.gateway.api.models import END, START, TOOL_MODEL

_SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"], "additionalProperties": False}
_WHOLE, _SECOND = '{"a": "é}"}', '{"a":"2"}'
#: What has come of the last call's arguments where the answer is cut.
_PART = '{"a":'


class Cell(NamedTuple):
    """What is asked, what the model says, and what the client must get."""

    choice: str
    strict: bool
    parallel: bool
    stream: bool
    #: The core's reason; a stop string cuts the last call as the length does.
    end: str

    @property
    def is_cut(self) -> bool:
        """Whether the answer ends in its last call, or in the text where there is none."""
        return self.end != "eos"

    @property
    def text(self) -> str:
        """The content."""
        said = {"auto": "Let me see.", "none": "I cannot <tool_call>."}.get(self.choice, "")
        return said[:5] if self.is_cut and self.choice == "none" else said

    @property
    def calls(self) -> list[tuple[str, str]]:
        """Names and arguments."""
        if self.choice == "none":
            return []
        calls = [("add", _WHOLE)]
        if self.parallel and self.choice != "named":
            calls.append(("sub", _SECOND))
        if self.is_cut:
            calls[-1] = (calls[-1][0], _PART)
        return calls

    @property
    def finish_reason(self) -> str:
        """Why the answer has ended."""
        if self.end == "length" or (self.is_cut and self.calls):
            return "length"
        return "tool_calls" if self.choice in {"auto", "required"} else "stop"

    def tokens(self) -> tuple[Token, ...]:
        """What the model says."""
        tokens = [*tokens_of(self.text)]
        for at, (name, arguments) in enumerate(self.calls):
            tokens += [Token(START, b""), *tokens_of(f'\n{{"name": "{name}", "arguments": {arguments}')]
            if not self.is_cut or at < len(self.calls) - 1:
                tokens += [*tokens_of("}\n"), Token(END, b"")]
        return tuple(tokens)

    def body(self) -> dict[str, Any]:
        """The request."""
        tools = [
            {"type": "function", "function": {"name": name, "parameters": _SCHEMA, "strict": self.strict}}
            for name in ("add", "sub")
        ]
        named = {"type": "function", "function": {"name": "add"}}
        return chat_body(
            tools=tools,
            tool_choice=named if self.choice == "named" else self.choice,
            parallel_tool_calls=self.parallel,
            stream=self.stream,
        )


_CELLS = [
    Cell(choice, strict, parallel, stream, end)
    for choice in ("auto", "none", "required", "named")
    for strict, parallel, stream in itertools.product((True, False), repeat=3)
    for end in ("eos", "length", "stop")
]


@pytest.mark.parametrize("cell", _CELLS, ids=lambda cell: "-".join([cell.choice, *(str(flag) for flag in cell[1:])]))
def test_matrix(cell: Cell) -> None:
    """The finish reason, the calls and the content are exact in every cell, and so is what the core is asked for."""
    script = Script([SpokenAnswer(cell.tokens(), cell.end)])
    client = ApiClient(script, router=FakeRouter(lambda _call: script, served=(TOOL_MODEL,)))
    answer = client.post("/v1/chat/completions", cell.body())
    assert answer.status == 200
    if cell.stream:
        (choice,) = joined_chat(answer.events)
        content, finish_reason = choice["content"], choice["finish_reason"]
        calls = [(call["name"], call["arguments"]) for call in choice["calls"]]
        ids = [call["id"] for call in choice["calls"]]
    else:
        (choice,) = answer.json["choices"]
        content, finish_reason = choice["message"]["content"] or "", choice["finish_reason"]
        called = choice["message"].get("tool_calls", [])
        calls = [(call["function"]["name"], call["function"]["arguments"]) for call in called]
        ids = [call["id"] for call in called]
        assert ("tool_calls" in choice["message"]) is bool(cell.calls)
    assert (content, calls, finish_reason) == (cell.text, cell.calls, cell.finish_reason)
    assert len(set(ids)) == len(cell.calls)
    _check_guide(cell, client.router.asked)


def _check_guide(cell: Cell, asked: dict[str, Any]) -> None:
    """In every mode but `none` there is a grammar, whatever `strict` says."""
    if cell.choice == "none":
        assert "guided_decoding_guide" not in asked
        return
    assert asked["guided_decoding_guide_type"] == "structural_tag"
    assert asked["marker_ids"] == [START, END]
    form = json.loads(asked["guided_decoding_guide"])["format"]
    tags = form if cell.choice == "auto" else form["elements"][-1]
    assert tags["type"] == ("triggered_tags" if cell.choice == "auto" else "tags_with_separator")
    assert tags["stop_after_first"] is (not cell.parallel or cell.choice == "named")
    assert tags.get("at_least_one", False) is (cell.choice != "auto")
    assert len(tags["tags"]) == (1 if cell.choice == "named" else 2)
