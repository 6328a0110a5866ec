"""What `/v1/responses` is answered, and what it asks for."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.fakes.gateway_upstream import Script, SpokenAnswer, Token, tokens_of
from tests.gateway.api.client import ApiClient
from trident_gateway.errors import UpstreamLostError

PATH = "/v1/responses"
HELLO = Script([SpokenAnswer(tokens_of("Hello wörld"))])


def events_of(body: bytes) -> list[Any]:
    """Return the events of a stream, whose lines and numbers are checked."""
    assert body.endswith(b"\n\n")
    events = []
    for block in body.decode().split("\n\n")[:-1]:
        first, second = block.split("\n")
        event = json.loads(second.removeprefix("data: "))
        assert first == f"event: {event['type']}"
        events.append(event)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    return events


def joined_response(body: bytes) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what a client joins from the deltas of a stream, and the response of its last event."""
    events = events_of(body)
    joined: dict[str, Any] = {"text": "", "logprobs": []}
    for event in events:
        if event["type"] == "response.output_text.delta":
            joined["text"] += event["delta"]
            joined["logprobs"] += event["logprobs"]
    return joined, events[-1]["response"]


def post(script: Script = HELLO, **fields: Any) -> Any:
    """Return the JSON of an answer."""
    answer = ApiClient(script).post(PATH, {"model": "demo", "input": "hi", **fields})
    assert answer.status == 200, answer.body
    return answer.json


def asked(**fields: Any) -> dict[str, Any]:
    """Return what is asked of the ensemble."""
    client = ApiClient(HELLO)
    answer = client.post(PATH, {"model": "demo", "input": "hi", **fields})
    assert answer.status == 200, answer.body
    return client.router.asked


def test_a_whole_response_has_one_message() -> None:
    """Its usage is the engine's."""
    body = post(metadata={"a": "b"}, instructions="be brief", temperature=0.5)
    assert body["id"].startswith("resp_")
    assert (body["object"], body["status"], body["model"]) == ("response", "completed", "demo")
    assert (body["error"], body["incomplete_details"], body["previous_response_id"]) == (None, None, None)
    assert (body["metadata"], body["instructions"], body["temperature"]) == ({"a": "b"}, "be brief", 0.5)
    (item,) = body["output"]
    assert item.pop("id").startswith("msg_")
    assert item == {
        "type": "message",
        "role": "assistant",
        "status": "completed",
        "content": [{"type": "output_text", "text": "Hello wörld", "annotations": [], "logprobs": []}],
    }
    assert body["usage"] == {
        "input_tokens": 3,
        "input_tokens_details": {"cached_tokens": 1, "cache_write_tokens": 0},
        "output_tokens": 4,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 7,
    }


def test_a_stream_tells_of_every_beginning_and_every_end() -> None:
    """In the order of the API, without `[DONE]`."""
    answer = ApiClient(HELLO).post(PATH, {"model": "demo", "input": "hi", "stream": True})
    assert [event["type"] for event in events_of(answer.body)] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        *["response.output_text.delta"] * 4,
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    ids = {event["item_id"] for event in events_of(answer.body) if "item_id" in event}
    assert len(ids) == 1


@pytest.mark.parametrize("stream", [False, True])
def test_a_cut_response_is_incomplete(stream: bool) -> None:
    """It says why, and so does its item."""
    script = Script([SpokenAnswer(tokens_of("Hello"), "length")])
    answer = ApiClient(script).post(PATH, {"model": "demo", "input": "hi", "stream": stream})
    body = events_of(answer.body)[-1]["response"] if stream else answer.json
    assert (body["status"], body["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    assert body["output"][0]["status"] == "incomplete"
    if stream:
        assert events_of(answer.body)[-1]["type"] == "response.incomplete"


def test_a_response_that_fails_ends_with_an_event() -> None:
    """In the form of this endpoint, with what was there until then."""
    script = Script([SpokenAnswer(tokens_of("Hello wörld"))], fails_after=2, failure=UpstreamLostError())
    answer = ApiClient(script).post(PATH, {"model": "demo", "input": "hi", "stream": True})
    last = events_of(answer.body)[-1]
    assert last["type"] == "response.failed"
    assert last["response"]["status"] == "failed"
    assert last["response"]["error"] == {"code": "server_error", "message": UpstreamLostError().message}


def test_an_empty_answer_is_an_empty_message() -> None:
    """Clients look for a message."""
    body = post(Script([SpokenAnswer(())]))
    assert [item["type"] for item in body["output"]] == ["message"]
    assert body["output"][0]["content"][0]["text"] == ""


def test_items_become_the_messages_that_templates_know() -> None:
    """Calls and reasoning belong to the assistant's message around them."""
    items = [
        {"type": "message", "role": "developer", "content": "be brief"},
        {"role": "user", "content": [{"type": "input_text", "text": "two and two?"}]},
        {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
        {"type": "function_call", "id": "fc_1", "call_id": "c1", "name": "add", "arguments": "{}",
         "status": "completed"},
        {"type": "function_call", "call_id": "c2", "name": "sub", "arguments": "[]"},
        {"type": "function_call_output", "call_id": "c1", "output": "4"},
        {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "0"}]},
        {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed",
         "content": [{"type": "output_text", "text": "Four.", "annotations": [], "logprobs": []}]},
        {"role": "assistant", "content": "Indeed."},
        {"role": "user", "content": "thanks"},
    ]  # fmt: skip
    calls = [
        {"id": "c1", "type": "function", "function": {"name": "add", "arguments": "{}"}},
        {"id": "c2", "type": "function", "function": {"name": "sub", "arguments": "[]"}},
    ]
    assert json.loads(asked(input=items, instructions="obey")["messages"]) == [
        {"role": "system", "content": "obey"},
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "two and two?"}]},
        {"role": "assistant", "tool_calls": calls, "reasoning_content": "hm"},
        {"role": "tool", "content": "4", "tool_call_id": "c1"},
        {"role": "tool", "content": [{"type": "text", "text": "0"}], "tool_call_id": "c2"},
        {"role": "assistant", "content": "Four."},
        {"role": "assistant", "content": "Indeed."},
        {"role": "user", "content": "thanks"},
    ]


@pytest.mark.parametrize(
    ("fields", "name", "value"),
    [
        ({"max_output_tokens": 5}, "max_tokens", 5),
        ({"temperature": 0}, "temperature", 0),
        ({"top_p": 0.5}, "top_p", 0.5),
        ({"text": {"format": {"type": "json_object"}}}, "guided_decoding_guide", '{"type":"object"}'),
        ({"text": {"format": {"type": "json_schema", "name": "n", "schema": {"type": "array"}, "strict": True}}},
         "guided_decoding_guide", '{"type":"array"}'),
        ({"include": ["message.output_text.logprobs"]}, "return_log_probs", True),
        ({"include": ["message.output_text.logprobs"], "top_logprobs": 3}, "num_top_log_probs", 3),
    ],
)  # fmt: skip
def test_a_field_becomes_its_tensor(fields: dict[str, Any], name: str, value: Any) -> None:
    """Under the ensemble's name."""
    assert asked(**fields)[name] == value


def test_fields_without_effect_change_nothing() -> None:
    """They are taken, because clients send them by themselves."""
    fields = {
        "store": False, "background": False, "truncation": "disabled", "service_tier": "default", "user": "u",
        "safety_identifier": "s", "reasoning": {}, "include": [], "metadata": {}, "tool_choice": "none",
        "text": {"format": {"type": "text"}}, "previous_response_id": None, "conversation": None,
    }  # fmt: skip
    assert asked(**fields) == asked()


def test_log_probabilities_of_the_text() -> None:
    """With bytes in the item, without them in the events, as the official types have it."""
    body = post(include=["message.output_text.logprobs"], top_logprobs=1)
    logprobs = body["output"][0]["content"][0]["logprobs"]
    assert logprobs[0].keys() == {"token", "bytes", "logprob", "top_logprobs"}
    assert b"".join(bytes(entry["bytes"]) for entry in logprobs).decode() == "Hello wörld"


@pytest.mark.parametrize("stream", [False, True])
def test_a_response_that_is_cut_before_it_has_text_is_incomplete_throughout(stream: bool) -> None:
    """Its one item is as incomplete as the response."""
    script = Script([SpokenAnswer((Token(9, b""),), "length")])
    answer = ApiClient(script).post(PATH, {"model": "demo", "input": "hi", "stream": stream})
    body = joined_response(answer.body)[1] if stream else answer.json
    assert body["status"] == "incomplete"
    assert [item["status"] for item in body["output"]] == ["incomplete"]
    if stream:
        done = [event["item"] for event in events_of(answer.body) if event["type"] == "response.output_item.done"]
        assert done == body["output"]
