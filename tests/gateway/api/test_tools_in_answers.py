"""Calls and reasoning in the answers of chat and responses: the same in streams and whole answers, however cut."""

from __future__ import annotations

import json
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from tests.fakes.gateway_upstream import FakeRouter, Script, SpokenAnswer, Token, refusal, tokens_of
from tests.gateway.api.client import ApiClient, chat_body, joined_chat
from tests.gateway.api.models import END, START, THINK, THINKING_MODEL, THOUGHT, TOOL_MODEL
from tests.gateway.api.test_responses_endpoint import events_of
from trident_gateway.settings import GatewaySettings
from trident_gateway.upstream.served_model import GenerateCall, ServedModel

CHAT, RESPONSES = "/v1/chat/completions", "/v1/responses"
TOOLS: list[dict[str, Any]] = [
    {"type": "function", "function": {"name": name, "parameters": {"type": "object", "properties": {}}, "strict": True}}
    for name in ("add", "sub")
]
FLAT_TOOLS = [{"type": "function", **tool["function"]} for tool in TOOLS]


def marker(token_id: int) -> Token:
    """Return a marker's token."""
    return Token(token_id, b"")


def call(name: str, arguments: str) -> tuple[Token, ...]:
    """Return the tokens of a call."""
    text = f'\n{{"name": "{name}", "arguments": {arguments}}}\n'
    return (marker(START), *tokens_of(text), marker(END))


def client_of(script: Script, model: ServedModel = TOOL_MODEL) -> ApiClient:
    """Return a client of a model with tools."""
    return ApiClient(script, router=FakeRouter(lambda _call: script, served=(model,)))


TWO_CALLS = Script([SpokenAnswer((*tokens_of("Let me see. "), *call("add", '{"a": "é"}'), *call("sub", "{}")))])


def test_calls_are_in_a_whole_message() -> None:
    """Each with an id of its own; the text before them stays."""
    answer = client_of(TWO_CALLS).post(CHAT, chat_body(tools=TOOLS))
    choice = answer.json["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    message = choice["message"]
    assert message["content"].strip() == "Let me see."
    calls = message["tool_calls"]
    assert [one.keys() for one in calls] == [{"id", "type", "function"}] * 2
    assert len({one["id"] for one in calls}) == 2
    assert [one["function"]["name"] for one in calls] == ["add", "sub"]
    assert [json.loads(one["function"]["arguments"]) for one in calls] == [{"a": "é"}, {}]


def test_a_message_of_calls_alone_has_no_content() -> None:
    """As OpenAI has it: null, not the empty text."""
    answer = client_of(Script([SpokenAnswer(call("add", "{}"))])).post(CHAT, chat_body(tools=TOOLS))
    assert answer.json["choices"][0]["message"]["content"] is None


def test_calls_stream_as_their_beginning_and_parts_of_arguments() -> None:
    """The first delta of a call has its id, type and name, and the others have arguments alone."""
    answer = client_of(TWO_CALLS).post(CHAT, chat_body(tools=TOOLS, stream=True))
    deltas = [event["choices"][0]["delta"] for event in answer.events[:-1]]
    parts = [part for delta in deltas for part in delta.get("tool_calls", ())]
    begun: set[int] = set()
    for part in parts:
        if part["index"] in begun:
            assert part.keys() == {"index", "function"}
            assert part["function"].keys() == {"arguments"}
        else:
            begun.add(part["index"])
            assert part.keys() == {"index", "id", "type", "function"}
            assert (part["type"], part["function"]["arguments"]) == ("function", "")
    assert begun == {0, 1}
    assert len(parts) > 4
    assert answer.events[-2]["choices"][0]["finish_reason"] == "tool_calls"


def test_tools_reach_the_template_without_what_is_not_for_it() -> None:
    """Also where none may be called, so that the prefix cache stays warm; their markers are banned then."""
    script = Script([SpokenAnswer(tokens_of("Hi"))])
    client = client_of(script)
    for choice in ("auto", "none"):
        assert client.post(CHAT, chat_body(tools=TOOLS, tool_choice=choice)).status == 200
        assert json.loads(client.router.asked["tools"]) == [
            {"type": "function", "function": {key: value for key, value in tool["function"].items() if key != "strict"}}
            for tool in TOOLS
        ]
    assert json.loads(client.router.asked["logit_bias"]) == {str(START): -100, str(END): -100}
    assert "guided_decoding_guide" not in client.router.asked
    bias = {str(token_id): 1.5 for token_id in range(START, START + 1000)}
    words = ["x"] * 256
    assert client.post(CHAT, chat_body(tools=TOOLS, tool_choice="none", bad_words=words, logit_bias=bias)).status == 200
    assert json.loads(client.router.asked["logit_bias"]) == bias | {str(START): -100, str(END): -100}
    assert client.router.asked["bad_words"] == words
    bias["0"] = 1
    assert client.post(CHAT, chat_body(logit_bias=bias)).error[2:] == ("invalid_value", "logit_bias")
    client.post(CHAT, chat_body(tools=TOOLS, tool_choice="required"))
    assert client.router.asked["guided_decoding_guide_type"] == "structural_tag"
    assert client.router.asked["marker_ids"] == [START, END]


@pytest.mark.parametrize(
    ("relax", "strict", "choice", "held"),
    [
        (False, None, "auto", True),
        (True, None, "auto", False),
        (True, False, "auto", False),
        (True, True, "auto", True),
        (True, False, "required", True),
    ],
)
def test_calls_are_held_to_schemas_unless_that_is_relaxed(
    relax: bool, strict: bool | None, choice: str, held: bool
) -> None:
    """For the requests of both endpoints."""
    script = Script([SpokenAnswer(call("add", "{}"))])
    router = FakeRouter(lambda _call: script, served=(TOOL_MODEL,))
    client = ApiClient(script, router=router, settings=GatewaySettings(relax_tools=relax))
    function = {"name": "add", "strict": strict}
    chat = chat_body(tools=[{"type": "function", "function": function}], tool_choice=choice)
    response = {"model": "demo", "input": "x", "tools": [{"type": "function", **function}], "tool_choice": choice}
    for path, body in ((CHAT, chat), (RESPONSES, response)):
        assert client.post(path, body).status == 200
        assert ("guided_decoding_guide" in router.asked) is held
        assert router.asked["marker_ids"] == [START, END]


def test_tools_and_a_form_of_the_whole_answer_exclude_each_other() -> None:
    """Unless none may be called."""
    wanted = {"type": "json_object"}
    client = client_of(Script([SpokenAnswer(tokens_of("{}"))]))
    answer = client.post(CHAT, chat_body(tools=TOOLS, response_format=wanted))
    assert answer.error[2:] == ("invalid_value", "response_format")
    assert client.post(CHAT, chat_body(tools=TOOLS, response_format=wanted, tool_choice="none")).status == 200
    responses = {"model": "demo", "input": "x", "tools": FLAT_TOOLS, "text": {"format": wanted}}
    assert client.post(RESPONSES, responses).error[2:] == ("invalid_value", "text.format")


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        (CHAT, chat_body(tools=TOOLS), "tools[1].function.parameters"),
        (RESPONSES, {"model": "demo", "input": "x", "tools": FLAT_TOOLS}, "tools[1].parameters"),
    ],
)
def test_the_schema_that_the_core_refuses_is_named(path: str, body: Any, param: str) -> None:
    """Of several tools, the one at fault."""

    def say(one: GenerateCall) -> Script:
        guide = json.loads(json.loads(one.body)["guided_decoding_guide"])
        pointer = next(place for place, found in walk(guide, "#") if found.get("properties") == {"z": False})
        raise refusal(f"[INVALID_ARG] invalid_guide: guided_decoding_guide: {pointer}/properties/z: is impossible")

    body = json.loads(json.dumps(body))
    function = body["tools"][1].get("function", body["tools"][1])
    function["parameters"]["properties"] = {"z": False}
    client = ApiClient(say, router=FakeRouter(say, served=(TOOL_MODEL,)))
    answer = client.post(path, body)
    assert answer.error == (400, "invalid_request_error", "invalid_json_schema", param)
    assert "#/format" not in answer.json["error"]["message"]


def walk(node: Any, place: str) -> Any:
    """Yield every object in a tree with its JSON pointer."""
    if isinstance(node, dict):
        yield place, node
    pairs = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in pairs:
        yield from walk(value, f"{place}/{key}")


THOUGHTFUL = Script(
    [SpokenAnswer((marker(THINK), *tokens_of("hm, hm"), marker(THOUGHT), *tokens_of("Four."), *call("add", "{}")))]
)


@pytest.mark.parametrize("stream", [False, True])
def test_reasoning_has_its_own_field_and_its_own_count(stream: bool) -> None:
    """Its markers are counted as reasoning, and shown nowhere."""
    body = chat_body(tools=TOOLS, stream=stream)
    if stream:
        body["stream_options"] = {"include_usage": True}
    answer = client_of(THOUGHTFUL, THINKING_MODEL).post(CHAT, body)
    if stream:
        (choice,) = joined_chat(answer.events)
        found = (choice["reasoning"].strip(), choice["content"].strip())
        usage = answer.events[-2]["usage"]
    else:
        message = answer.json["choices"][0]["message"]
        found = (message["reasoning_content"].strip(), message["content"].strip())
        usage = answer.json["usage"]
    assert found == ("hm, hm", "Four.")
    assert usage["completion_tokens_details"] == {"reasoning_tokens": 4}
    assert usage["completion_tokens"] == len(THOUGHTFUL.answers[0].tokens)


@pytest.mark.parametrize("stream", [False, True])
def test_a_response_has_an_item_for_reasoning_text_and_each_call(stream: bool) -> None:
    """In the order in which they came, each complete before the next begins."""
    answer = client_of(THOUGHTFUL, THINKING_MODEL).post(
        RESPONSES, {"model": "demo", "input": "x", "tools": FLAT_TOOLS, "stream": stream}
    )
    body = events_of(answer.body)[-1]["response"] if stream else answer.json
    assert [item["type"] for item in body["output"]] == ["reasoning", "message", "function_call"]
    assert [item["status"] for item in body["output"]] == ["completed"] * 3
    reasoning, message, called = body["output"]
    assert reasoning["content"][0]["text"].strip() == "hm, hm"
    assert message["content"][0]["text"].strip() == "Four."
    assert (called["name"], json.loads(called["arguments"])) == ("add", {})
    assert body["usage"]["output_tokens_details"] == {"reasoning_tokens": 4}
    if stream:
        ends = [event["output_index"] for event in events_of(answer.body) if event["type"].endswith("item.done")]
        begins = [event["output_index"] for event in events_of(answer.body) if event["type"].endswith("item.added")]
        assert begins == ends == [0, 1, 2]


def test_log_probabilities_of_a_response_go_with_plain_text_alone() -> None:
    """They could not be told apart from those of calls."""
    body = {"model": "demo", "input": "x", "tools": FLAT_TOOLS, "include": ["message.output_text.logprobs"]}
    assert client_of(TWO_CALLS).post(RESPONSES, body).error[2:] == ("invalid_value", "include")


@st.composite
def spoken(draw: st.DrawFn) -> SpokenAnswer:
    """Draw an answer with reasoning, text and calls, each of which may be missing or cut."""
    tokens: list[Token] = []
    if draw(st.booleans()):
        tokens += [marker(THINK), *tokens_of(draw(st.text(max_size=6))), marker(THOUGHT)]
    tokens += tokens_of(draw(st.text(max_size=6)))
    for _ in range(draw(st.integers(0, 3))):
        arguments = draw(st.dictionaries(st.text(max_size=3), st.text(max_size=4) | st.integers(), max_size=2))
        tokens += call(draw(st.sampled_from(["add", "sub"])), json.dumps(arguments, ensure_ascii=draw(st.booleans())))
    reason = draw(st.sampled_from(["eos", "length"]))
    if reason == "length":
        tokens = tokens[: draw(st.integers(0, len(tokens)))]
        while tokens and not is_text(b"".join(token.raw for token in tokens)):
            tokens.pop()
    return SpokenAnswer(tuple(tokens), reason)


def is_text(raw: bytes) -> bool:
    """Return whether bytes end with a whole character."""
    try:
        raw.decode()
    except UnicodeDecodeError:
        return False
    return True


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(
    st.lists(spoken(), min_size=1, max_size=2),
    st.lists(st.tuples(st.integers(0, 1), st.integers(1, 9)), max_size=10),
    st.integers(1, 3),
    st.booleans(),
)
def test_the_deltas_of_calls_and_reasoning_join_to_the_whole_answer(
    answers: list[SpokenAnswer], order: list[tuple[int, int]], per_read: int, scored: bool
) -> None:
    """Content, reasoning, names, arguments, log probabilities, reasons and usage."""
    order = [(index % len(answers), count) for index, count in order]
    script = Script(answers, order=order, events_per_read=per_read)
    fields: dict[str, Any] = {"n": len(answers), "tools": TOOLS, "logprobs": scored}
    whole = client_of(script, THINKING_MODEL).post(CHAT, chat_body(**fields)).json
    streamed = client_of(script, THINKING_MODEL).post(
        CHAT, chat_body(**fields, stream=True, stream_options={"include_usage": True})
    )
    *events, usage, _done = streamed.events
    assert usage["usage"] == whole["usage"]
    for choice, mine in zip(whole["choices"], joined_chat(events, len(answers)), strict=True):
        message = choice["message"]
        assert mine["content"] == (message["content"] or "")
        assert mine["reasoning"] == message.get("reasoning_content", "")
        assert mine["finish_reason"] == choice["finish_reason"]
        assert mine["logprobs"] == (choice["logprobs"] or {"content": []})["content"]
        calls = [one["function"] for one in message.get("tool_calls", ())]
        assert [(one["name"], one["arguments"]) for one in mine["calls"]] == [
            (one["name"], one["arguments"]) for one in calls
        ]
