"""What is wrong with a body is said with the right code and the right path, whichever endpoint it was for."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.fakes.gateway_upstream import Script, SpokenAnswer, tokens_of
from tests.gateway.api.client import ApiClient, chat_body
from trident_gateway.api.body import decode_body
from trident_gateway.api.chat_request import ChatRequest
from trident_gateway.api.unknown_fields import drop_unknown
from trident_gateway.settings import GatewaySettings

CHAT, COMPLETIONS, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"
MISSING = "missing_required_parameter"
UNSUPPORTED = "unsupported_parameter"
SCRIPT = Script([SpokenAnswer(tokens_of("Hello"))])


def completion(**fields: Any) -> dict[str, Any]:
    """Return the body of a completion."""
    return {"model": "demo", "prompt": "hi", **fields}


def response(**fields: Any) -> dict[str, Any]:
    """Return the body of a response."""
    return {"model": "demo", "input": "hi", **fields}


def message(**fields: Any) -> dict[str, Any]:
    """Return the body of a chat with one message."""
    return {"model": "demo", "messages": [fields]}


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"nonsense", b'{"model": "demo",}', b'{"model": NaN}', b"\xff", b'{"model": "\xff"}',
        b'{"model": "\\ud800"}',
    ],
    ids=["empty", "cut", "no JSON", "comma", "NaN", "no UTF-8", "bad text", "half a pair"],
)  # fmt: skip
@pytest.mark.parametrize("path", [CHAT, COMPLETIONS, RESPONSES, "/tokenize", "/detokenize"])
def test_a_body_that_is_no_json_is_400_invalid_json(path: str, body: bytes) -> None:
    """Whatever cannot be read is `invalid_json`, and names no field."""
    answer = ApiClient(SCRIPT).post(path, body)
    assert answer.error == (400, "invalid_request_error", "invalid_json", None)


@pytest.mark.parametrize(
    ("path", "body", "code", "param"),
    [
        (CHAT, [], "invalid_type", None),
        (CHAT, {}, MISSING, "model"),
        (CHAT, {"model": "demo"}, MISSING, "messages"),
        (CHAT, {"model": 3}, "invalid_type", "model"),
        (CHAT, {"model": "demo", "messages": "hi"}, "invalid_type", "messages"),
        (CHAT, {"model": "demo", "messages": []}, "invalid_value", "messages"),
        (CHAT, message(content="x"), MISSING, "messages[0].role"),
        (CHAT, message(role=3, content="x"), "invalid_type", "messages[0].role"),
        (CHAT, message(role="critic", content="x"), "invalid_value", "messages[0].role"),
        (CHAT, message(role="user"), MISSING, "messages[0].content"),
        (CHAT, message(role="user", content=None), "invalid_type", "messages[0].content"),
        (CHAT, message(role="user", content=7), "invalid_type", "messages[0].content"),
        (CHAT, message(role="user", content=[]), "invalid_value", "messages[0].content"),
        (CHAT, message(role="user", content=[{"type": "text"}]), MISSING, "messages[0].content[0].text"),
        (CHAT, message(role="user", content=[{"type": "smell"}]), "invalid_value", "messages[0].content[0].type"),
        (CHAT, message(role="user", content="x", colour=1), "unknown_parameter", "messages[0].colour"),
        (CHAT, message(role="assistant"), "invalid_value", "messages[0].content"),
        (CHAT, message(role="tool", content="x"), MISSING, "messages[0].tool_call_id"),
        (CHAT, message(role="assistant", tool_calls=[{"id": "a", "function": {"name": "f", "arguments": {}}}]),
         "invalid_type", "messages[0].tool_calls[0].function.arguments"),
        (CHAT, chat_body(max_tokns=3), "unknown_parameter", "max_tokns"),
        (CHAT, chat_body(temperature="hot"), "invalid_type", "temperature"),
        (CHAT, chat_body(temperature=True), "invalid_type", "temperature"),
        (CHAT, chat_body(temperature=2.1), "invalid_value", "temperature"),
        (CHAT, chat_body(temperature=-0.1), "invalid_value", "temperature"),
        (CHAT, chat_body(top_p=1.1), "invalid_value", "top_p"),
        (CHAT, chat_body(n=0), "invalid_value", "n"),
        (CHAT, chat_body(n=129), "invalid_value", "n"),
        (CHAT, chat_body(n=1.5), "invalid_type", "n"),
        (CHAT, chat_body(seed=2**63), "invalid_value", "seed"),
        (CHAT, chat_body(seed=-(2**63) - 1), "invalid_value", "seed"),
        (CHAT, chat_body(stop=["x"] * 33), "invalid_value", "stop"),
        (CHAT, chat_body(stop=[1]), "invalid_type", "stop[0]"),
        (CHAT, chat_body(stop=["a", ""]), "invalid_value", "stop[1]"),
        (CHAT, chat_body(stop=""), "invalid_value", "stop"),
        (CHAT, chat_body(presence_penalty=2.5), "invalid_value", "presence_penalty"),
        (CHAT, chat_body(logit_bias={"a": 1}), "invalid_value", "logit_bias"),
        (CHAT, chat_body(logit_bias={"5": 101}), "invalid_value", "logit_bias[...]"),
        (CHAT, chat_body(logit_bias={"5": "x"}), "invalid_type", "logit_bias[...]"),
        (CHAT, chat_body(max_tokens=0), "invalid_value", "max_tokens"),
        (CHAT, chat_body(max_tokens=2**31), "invalid_value", "max_tokens"),
        (CHAT, chat_body(max_tokens=3, max_completion_tokens=4), "invalid_value", "max_tokens"),
        (CHAT, chat_body(top_logprobs=2), "invalid_value", "top_logprobs"),
        (CHAT, chat_body(logprobs=True, top_logprobs=21), "invalid_value", "top_logprobs"),
        (CHAT, chat_body(stream_options={"include_usage": True}), "invalid_value", "stream_options"),
        (CHAT, chat_body(stream=True, stream_options={"x": 1}), "unknown_parameter", "stream_options.x"),
        (CHAT, chat_body(response_format={"type": "yaml"}), "invalid_value", "response_format.type"),
        (CHAT, chat_body(response_format={"type": "json_schema"}), MISSING, "response_format.json_schema"),
        (CHAT, chat_body(response_format={"type": "json_schema", "json_schema": {"name": "a b"}}),
         "invalid_value", "response_format.json_schema.name"),
        (CHAT, chat_body(response_format={"type": "json_object"}, guided_regex="a"), "invalid_value", "guided_regex"),
        (CHAT, chat_body(guided_choice=[]), "invalid_value", "guided_choice"),
        (CHAT, chat_body(tool_choice="auto"), "invalid_value", "tool_choice"),
        (CHAT, chat_body(tool_choice="sometimes"), "invalid_value", "tool_choice"),
        (CHAT, chat_body(response_format={"type": "structural_tag", "format": {}, "tags": []}),
         "unknown_parameter", "response_format.tags"),
        (CHAT, chat_body(prompt_cache_key="x" * 1025), "invalid_value", "prompt_cache_key"),
        (CHAT, {"model": "demo", "messages": [{"role": "user", "content": "x"}] * 16_385},
         "invalid_value", "messages"),
        ("/tokenize", {"model": "demo", "messages": [{"role": "user", "content": "x"}] * 16_385},
         "invalid_value", "messages"),
        (RESPONSES, response(input=[{"role": "user", "content": "x"}] * 16_385), "invalid_value", "input"),
        (RESPONSES, response(prompt_cache_key="x" * 1025), "invalid_value", "prompt_cache_key"),
        (CHAT, chat_body(tools=[{"type": "web_search"}]), "invalid_value", "tools[0].type"),
        (CHAT, chat_body(tools=[{"type": "function", "function": {}}]), MISSING, "tools[0].function.name"),
        (CHAT, chat_body(add_generation_prompt=True, continue_final_message=True),
         "invalid_value", "continue_final_message"),
        (CHAT, chat_body(timeout=0), "invalid_value", "timeout"),
        (CHAT, chat_body(priority=101), "invalid_value", "priority"),
        (CHAT, chat_body(truncate_prompt_tokens=0), "invalid_value", "truncate_prompt_tokens"),
        (CHAT, chat_body(top_k=-2), "invalid_value", "top_k"),
        (CHAT, chat_body(modalities=["audio"]), "invalid_value", "modalities[0]"),
        (CHAT, chat_body(service_tier="flex"), "invalid_value", "service_tier"),
        (CHAT, chat_body(store=True), UNSUPPORTED, "store"),
        (CHAT, chat_body(functions=[]), UNSUPPORTED, "functions"),
        (CHAT, chat_body(function_call="auto"), UNSUPPORTED, "function_call"),
        (CHAT, chat_body(audio={"voice": "x"}), UNSUPPORTED, "audio"),
        (CHAT, chat_body(prediction={"type": "content"}), UNSUPPORTED, "prediction"),
        (CHAT, chat_body(web_search_options={}), UNSUPPORTED, "web_search_options"),
        (CHAT, chat_body(previous_response_id="x"), "unknown_parameter", "previous_response_id"),
        (CHAT, chat_body(background=True), "unknown_parameter", "background"),
        (CHAT, message(role="function", name="f", content="x"), UNSUPPORTED, "messages[0].role"),
        (CHAT, message(role="user", content=[{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {}}]),
         UNSUPPORTED, "messages[0].content[1]"),
        (CHAT, message(role="user", content=[{"type": "input_audio", "input_audio": {}}]),
         UNSUPPORTED, "messages[0].content[0]"),
        (CHAT, message(role="assistant", content="x", function_call={"name": "f"}),
         UNSUPPORTED, "messages[0].function_call"),
        (COMPLETIONS, {"model": "demo"}, MISSING, "prompt"),
        (COMPLETIONS, completion(prompt=3), "invalid_type", "prompt"),
        (COMPLETIONS, completion(prompt=[]), "invalid_value", "prompt"),
        (COMPLETIONS, completion(prompt=["a"] * 33), "invalid_value", "prompt"),
        (COMPLETIONS, completion(prompt=["a", 3]), "invalid_type", "prompt[1]"),
        (COMPLETIONS, completion(prompt=[3, "a"]), "invalid_type", "prompt[1]"),
        (COMPLETIONS, completion(prompt=[[3], "a"]), "invalid_type", "prompt[1]"),
        (COMPLETIONS, completion(prompt=[[3], []]), "invalid_value", "prompt[1]"),
        (COMPLETIONS, completion(prompt=[-1]), "invalid_value", "prompt[0]"),
        (COMPLETIONS, completion(suffix="x"), UNSUPPORTED, "suffix"),
        (COMPLETIONS, completion(best_of=2), "invalid_value", "best_of"),
        (COMPLETIONS, completion(logprobs=6), "invalid_value", "logprobs"),
        (COMPLETIONS, completion(logprobs=True), "invalid_type", "logprobs"),
        (COMPLETIONS, completion(max_tokens=-1), "invalid_value", "max_tokens"),
        (COMPLETIONS, completion(messages=[]), "unknown_parameter", "messages"),
        (RESPONSES, response(store=True), UNSUPPORTED, "store"),
        (RESPONSES, response(background=True), UNSUPPORTED, "background"),
        (RESPONSES, response(previous_response_id="r"), UNSUPPORTED, "previous_response_id"),
        (RESPONSES, response(conversation="c"), UNSUPPORTED, "conversation"),
        (RESPONSES, response(reasoning={"effort": "low"}), UNSUPPORTED, "reasoning.effort"),
        (RESPONSES, response(truncation="auto"), "invalid_value", "truncation"),
        (RESPONSES, response(input=[]), "invalid_value", "input"),
        (RESPONSES, response(input=[{"role": "user"}]), MISSING, "input[0].content"),
        (RESPONSES, response(input=[{"type": "function_call", "call_id": "c", "name": "f"}]),
         MISSING, "input[0].arguments"),
        (RESPONSES, response(input=[{"type": "reasoning", "role": "user"}]), "invalid_value", "input[0].role"),
        (RESPONSES, response(input=[{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]),
         UNSUPPORTED, "input[0].content[0]"),
        (RESPONSES, response(tools=[{"type": "web_search"}]), "invalid_value", "tools[0].type"),
        (RESPONSES, response(top_logprobs=3), "invalid_value", "top_logprobs"),
        (RESPONSES, response(temperature=3), "invalid_value", "temperature"),
        ("/tokenize", {"model": "demo"}, "invalid_value", "prompt"),
        ("/tokenize", {"model": "demo", "prompt": "a", "tools": []}, "invalid_value", "tools"),
        ("/detokenize", {"model": "demo", "tokens": []}, "invalid_value", "tokens"),
        ("/detokenize", {"model": "demo", "tokens": ["a"]}, "invalid_type", "tokens[0]"),
    ],
)  # fmt: skip
def test_a_body_with_a_fault_is_400_with_its_code_and_path(path: str, body: Any, code: str, param: str | None) -> None:
    """The path is spelled as OpenAI spells it, and nothing reaches a server."""
    client = ApiClient(SCRIPT)
    answer = client.post(path, body)
    assert answer.error == (400, "invalid_request_error", code, param), answer.body
    assert client.router.calls == []
    assert client.limiter.reservations == []


@pytest.mark.parametrize("depth", [300, 450, 600, *range(900, 1000, 7), 5000])
@pytest.mark.parametrize(
    ("path", "field"),
    [
        (CHAT, '"chat_template_kwargs": {"a": HERE}'),
        (CHAT, '"tools": [{"type": "function", "function": {"name": "f", "parameters": {"a": HERE}}}]'),
        (CHAT, '"guided_json": {"a": HERE}'),
        (COMPLETIONS, '"guided_json": {"a": HERE}'),
        (CHAT, '"x": HERE'),
        (RESPONSES, '"tools": [{"type": "function", "name": "f", "parameters": {"a": HERE}}], "tool_choice": "none"'),
        ("/tokenize", '"chat_template_kwargs": {"a": HERE}'),
    ],
)
@pytest.mark.parametrize("allow", [False, True])
def test_a_body_that_nests_too_deeply_is_400_and_never_a_fault(path: str, field: str, depth: int, allow: bool) -> None:
    """There is a depth that can be read and not written again; that is the client's fault too."""
    nested = "[" * depth + "]" * depth
    raw = json.dumps(
        {CHAT: chat_body(), COMPLETIONS: completion(), RESPONSES: response()}.get(
            path, message(role="user", content="x")
        )
    )
    client = ApiClient(SCRIPT, settings=GatewaySettings(allow_unknown_fields=allow))
    client.router.json_answers = lambda _name, _body: b'{"input_ids": 1}'
    answer = client.post(path, (raw[:-1] + "," + field.replace("HERE", nested) + "}").encode())
    assert answer.status in (200, 400), answer.body
    if depth == 5000:
        assert answer.status == 400
        assert answer.error[2] in ("invalid_json", "unknown_parameter")


@pytest.mark.parametrize("number", ["1e999", "-1e999", "1" * 5000])
def test_a_number_that_json_has_and_no_machine_is_400(number: str) -> None:
    """Numbers beyond every bound are refused by the field, or as no JSON."""
    body = json.dumps(chat_body(temperature="HERE")).replace('"HERE"', number).encode()
    status, kind, code, param = ApiClient(SCRIPT).post(CHAT, body).error
    assert (status, kind) == (400, "invalid_request_error")
    assert (code, param) in {("invalid_value", "temperature"), ("invalid_json", None)}


def test_text_behind_the_body_is_400() -> None:
    """A body is one value."""
    assert ApiClient(SCRIPT).post(CHAT, json.dumps(chat_body()).encode() + b" x").error[2:] == ("invalid_json", None)


def test_the_last_of_two_equal_keys_wins() -> None:
    """As with every JSON reader that clients use."""
    client = ApiClient(SCRIPT)
    body = json.dumps(chat_body()).encode()[:-1] + b', "seed": 1, "seed": 2}'
    assert client.post(CHAT, body).status == 200
    assert client.router.asked["seed"] == 2


def test_null_is_the_same_as_absent() -> None:
    """Clients write null for what they do not want, also for fields that are refused."""
    names = (
        "temperature", "top_p", "n", "stop", "seed", "logit_bias", "tools", "tool_choice", "response_format", "audio",
        "functions", "prediction", "store", "stream_options", "logprobs", "top_logprobs", "user", "metadata",
    )  # fmt: skip
    client = ApiClient(SCRIPT)
    assert client.post(CHAT, {**chat_body(), **dict.fromkeys(names)}).status == 200
    with_nulls = client.router.asked
    assert client.post(CHAT, chat_body()).status == 200
    assert client.router.asked == with_nulls


def test_fields_without_effect_change_nothing() -> None:
    """They are read and checked, and what is asked of the server stays the same."""
    client = ApiClient(SCRIPT)
    fields = {
        "user": "u", "metadata": {"a": "b"}, "safety_identifier": "s", "service_tier": "auto", "store": False,
        "modalities": ["text"],
    }  # fmt: skip
    assert client.post(CHAT, {**chat_body(), **fields}).status == 200
    with_fields = client.router.asked
    assert client.post(CHAT, chat_body()).status == 200
    assert client.router.asked == with_fields


def test_unknown_fields_are_ignored_where_that_is_allowed_and_listed_in_a_header() -> None:
    """`--allow-unknown-fields` relaxes fields that nobody knows, at any depth, and nothing else."""
    client = ApiClient(SCRIPT, settings=GatewaySettings(allow_unknown_fields=True))
    body = chat_body(colour="red", shape="round")
    body["messages"][0]["mood"] = "good"
    answer = client.post(CHAT, body)
    assert answer.status == 200
    assert sorted(answer.headers["x-trident-ignored"].split(",")) == ["colour", "messages[0].mood", "shape"]
    assert client.post(CHAT, chat_body(colour="red", n="x")).error[2:] == ("invalid_type", "n")
    assert client.post(CHAT, chat_body(colour="red", store=True)).error[2:] == (UNSUPPORTED, "store")
    assert "x-trident-ignored" not in client.post(CHAT, chat_body()).headers


def test_a_hostile_name_of_an_unknown_field_breaks_no_header() -> None:
    """Line breaks and other characters in a field's name do not reach the header as they are."""
    client = ApiClient(SCRIPT, settings=GatewaySettings(allow_unknown_fields=True))
    answer = client.post(CHAT, {**chat_body(), "a\r\nset-cookie: x": 1, "ü": 2})
    assert answer.status == 200
    assert answer.headers["x-trident-ignored"].isprintable()
    assert ApiClient(SCRIPT).post(CHAT, {**chat_body(), "a\r\nb": 1}).status == 400


@pytest.mark.parametrize("allow", [False, True])
@pytest.mark.parametrize("name", ["` - at `$.messages", "` - at `$.messages[0].content", "", " - at `$[9]", "`", "a.b"])
@pytest.mark.parametrize("is_nested", [False, True])
def test_the_name_of_an_unknown_field_is_no_path(name: str, is_nested: bool, allow: bool) -> None:
    """Whatever it spells, the field is named where it stands, and it is the one that is left out."""
    client = ApiClient(SCRIPT, settings=GatewaySettings(allow_unknown_fields=allow))
    body = chat_body()
    (body["messages"][0] if is_nested else body)[name] = 1
    answer = client.post(CHAT, body)
    if allow:
        assert answer.status == 200
        assert "x-trident-ignored" in answer.headers
        return
    where = "messages[0]." if is_nested else ""
    shown = name if name == "a.b" else repr(name)
    assert answer.error == (400, "invalid_request_error", "unknown_parameter", where + shown)


def test_unknown_fields_are_found_in_one_walk() -> None:
    """Each struct is looked at once, however many fields of it are unknown; a large body blocks nobody for long."""

    class Counting(dict[str, Any]):
        num_walks = 0

        def __iter__(self) -> Any:
            Counting.num_walks += 1
            return super().__iter__()

    raw = Counting({**chat_body(), **{f"x{index}": index for index in range(50)}})
    raw["messages"] = [Counting(role="user", content="x", **{f"y{at}": 1 for at in range(50)}) for _ in range(3)]
    dropped = list(drop_unknown(raw, ChatRequest))
    assert dropped == [
        *(("messages[" + str(row) + "]", f"y{at}") for row in range(3) for at in range(50)),
        *(("", f"x{index}") for index in range(50)),
    ]
    assert Counting.num_walks == 4
    assert raw.keys() == {"model", "messages"}
    assert list(drop_unknown(raw, ChatRequest)) == []


def test_unknown_fields_are_taken_out_wherever_a_type_has_none() -> None:
    """In parts, tools, choices and formats; not where a schema or a template takes anything."""
    free = {"x": {"y": 1}}
    body = chat_body(
        messages=[
            {"role": "user", "content": [{"type": "text", "text": "a", "p": 1}]},
            {"role": "assistant", "tool_calls": [{"id": "c", "q": 1, "function": {"name": "f", "arguments": "{}"}}]},
            {"role": "tool", "tool_call_id": "c", "content": "r"},
        ],
        tools=[{"type": "function", "r": 1, "function": {"name": "f", "parameters": free}}],
        tool_choice={"type": "function", "function": {"name": "f", "s": 1}},
        chat_template_kwargs=free,
        stream_options={"t": 1},
    )
    expected = [
        "messages[0].content[0].p", "messages[1].tool_calls[0].q", "tools[0].r", "tool_choice.function.s",
        "stream_options.t",
    ]  # fmt: skip
    value, ignored = decode_body(json.dumps(body).encode(), ChatRequest, allow_unknown=True)
    assert list(ignored) == expected
    assert value.chat_template_kwargs == free
    assert value.tools is not None
    assert value.tools[0].function.parameters == free


def test_so_many_unknown_fields_are_ignored_and_no_more() -> None:
    """The list in the header is bounded, so a body with more of them is refused by the first one that is too many."""
    client = ApiClient(SCRIPT, settings=GatewaySettings(allow_unknown_fields=True))
    fields = {f"x{index}": 1 for index in range(65)}
    assert client.post(CHAT, {**chat_body(), **fields}).error[2:] == ("unknown_parameter", "x64")
    del fields["x64"]
    assert client.post(CHAT, {**chat_body(), **fields}).status == 200


def test_a_guide_that_can_just_be_read_is_never_a_fault() -> None:
    """The depth at which only writing fails is one alone, and depends on who calls."""
    client = ApiClient(SCRIPT)
    for depth in range(850, 1000):
        nested = '{"a":' * depth + "1" + "}" * depth
        raw = json.dumps(completion())[:-1] + f', "guided_json": {nested}}}'
        assert client.post(COMPLETIONS, raw.encode()).status in (200, 400)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, chat_body()), (COMPLETIONS, completion()), (RESPONSES, response()),
        ("/tokenize", completion()), ("/detokenize", {"model": "demo", "tokens": [1]}),
    ],
)  # fmt: skip
def test_a_name_that_is_no_models_is_not_sent_back(path: str, body: Any) -> None:
    """An error is as small as it can be, however long the name is."""
    answer = ApiClient(SCRIPT).post(path, {**body, "model": "x" * 257})
    assert answer.error == (400, "invalid_request_error", "invalid_value", "model")
    assert len(answer.body) < 300
    assert ApiClient(SCRIPT).post(path, {**body, "model": "x" * 256}).error[2] == "model_not_found"


@pytest.mark.parametrize("parallel", [True, False])
@pytest.mark.parametrize(("path", "body"), [(CHAT, chat_body()), (RESPONSES, response())])
def test_a_bound_on_calls_changes_nothing_without_tools(path: str, body: Any, parallel: bool) -> None:
    """Agents send it by themselves; chat and responses take it alike."""
    client = ApiClient(SCRIPT)
    for fields in ({}, {"parallel_tool_calls": parallel}):
        assert client.post(path, {**body, **fields}).status == 200
    assert client.router.calls[0].body == client.router.calls[1].body
