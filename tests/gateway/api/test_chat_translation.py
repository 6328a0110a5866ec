"""What a chat's fields become at the ensemble."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from tests.fakes.gateway_upstream import MODEL, FakeRouter, Script, SpokenAnswer, tokens_of
from tests.gateway.api.client import ApiClient, chat_body
from tests.gateway.api.schema import fields_without_effect
from trident_ensemble.contract import tensors
from trident_gateway.api.body import refused_fields
from trident_gateway.api.chat_request import ChatRequest
from trident_gateway.api.messages import AssistantMessage, TextPart
from trident_gateway.callers import Caller
from trident_gateway.settings import GatewaySettings

CHAT = "/v1/chat/completions"
SCRIPT = Script([SpokenAnswer(tokens_of("Hello"))])


def asked(**fields: Any) -> dict[str, Any]:
    """Return what is asked of the ensemble for a chat."""
    script = Script([SpokenAnswer(tokens_of("Hello"))] * fields.get("n", 1))
    client = ApiClient(script)
    answer = client.post(CHAT, chat_body(**fields))
    assert answer.status == 200, answer.body
    values = client.router.asked
    known = {spec.name for spec in (*tensors.ENSEMBLE_INPUTS, *_NEW)}
    assert values.keys() <= known, values.keys() - known
    return values


_NEW = (tensors.PROMPT_TOKEN_IDS, tensors.MARKER_IDS, tensors.RETURN_TOKEN_BYTES)


TENSORS: list[tuple[dict[str, Any], str, Any]] = [
    ({"max_tokens": 7}, "max_tokens", 7),
    ({"max_completion_tokens": 7}, "max_tokens", 7),
    ({"max_completion_tokens": 7, "max_tokens": 7}, "max_tokens", 7),
    ({"temperature": 0}, "temperature", 0),
    ({"temperature": 0.5}, "temperature", 0.5),
    ({"top_p": 0.5}, "top_p", 0.5),
    ({"n": 2}, "num_return_sequences", 2),
    ({"stop": "x"}, "stop_words", ["x"]),
    ({"stop": ["x", "y"]}, "stop_words", ["x", "y"]),
    ({"seed": 5}, "seed", 5),
    ({"seed": -1}, "seed", 2**64 - 1),
    ({"presence_penalty": 1}, "presence_penalty", 1),
    ({"frequency_penalty": -1}, "frequency_penalty", -1),
    ({"logit_bias": {"5": -100}}, "logit_bias", '{"5":-100.0}'),
    ({"logprobs": True}, "return_log_probs", True),
    ({"logprobs": True}, "return_token_bytes", True),
    ({"logprobs": True, "top_logprobs": 3}, "num_top_log_probs", 3),
    ({"top_k": 4}, "top_k", 4),
    ({"top_k": -1}, "top_k", 0),
    ({"min_p": 0.1}, "min_p", 0.1),
    ({"repetition_penalty": 1.1}, "repetition_penalty", 1.1),
    ({"min_tokens": 3}, "min_tokens", 3),
    ({"ignore_eos": True}, "ignore_eos", True),
    ({"stop_token_ids": [3]}, "stop_token_ids", [3]),
    ({"include_stop_str_in_output": True}, "include_stop_str_in_output", True),
    ({"bad_words": ["x"]}, "bad_words", ["x"]),
    ({"skip_special_tokens": False}, "skip_special_tokens", False),
    ({"truncate_prompt_tokens": -1}, "truncate_prompt_tokens", -1),
    ({"timeout": 1.5}, "timeout_ms", 1500),
    ({"timeout": 0.0001}, "timeout_ms", 1),
    ({}, "timeout_ms", 600_000),
    ({"priority": 5}, "priority", 5),
    ({"chat_template_kwargs": {"a": 1}}, "chat_template_kwargs", '{"a":1}'),
    ({"add_generation_prompt": False}, "add_generation_prompt", False),
    ({"continue_final_message": True}, "continue_final_message", True),
    ({"response_format": {"type": "json_object"}}, "guided_decoding_guide", '{"type":"object"}'),
    ({"response_format": {"type": "json_object"}}, "guided_decoding_guide_type", "json_schema"),
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "array"}}}},
     "guided_decoding_guide", '{"type":"array"}'),
    ({"response_format": {"type": "structural_tag", "format": {"type": "any_text"}}},
     "guided_decoding_guide", '{"type":"structural_tag","format":{"type":"any_text"}}'),
    ({"guided_json": {"type": "array"}}, "guided_decoding_guide", '{"type":"array"}'),
    ({"guided_json": '{"type": "array"}'}, "guided_decoding_guide", '{"type": "array"}'),
    ({"guided_regex": "a+"}, "guided_decoding_guide_type", "regex"),
    ({"guided_regex": "a+"}, "guided_decoding_guide", "a+"),
    ({"guided_choice": ["a", "b"]}, "guided_decoding_guide_type", "choice"),
    ({"guided_choice": ["a", "b"]}, "guided_decoding_guide", '["a","b"]'),
    ({"guided_grammar": 'root ::= "a"'}, "guided_decoding_guide_type", "ebnf_grammar"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "name", "value"), TENSORS)
def test_a_field_becomes_its_tensor(fields: dict[str, Any], name: str, value: Any) -> None:
    """Every field that has an effect has it at the ensemble, under the ensemble's name."""
    assert asked(**fields)[name] == value


def test_no_field_is_ignored_in_silence() -> None:
    """A field that is neither refused nor called one without effect is in the table above, or has a test of its own."""
    elsewhere = {
        "model", "messages", "stream", "stream_options", "n", "tools", "tool_choice", "parallel_tool_calls",
        "prompt_cache_key",
    }  # fmt: skip
    tested = {name for fields, _, _ in TENSORS for name in fields} | elsewhere
    silent = fields_without_effect(ChatRequest) | refused_fields(ChatRequest).keys()
    assert set(ChatRequest.__struct_fields__) - silent == tested


def test_a_chat_that_says_nothing_leaves_everything_to_the_server() -> None:
    """Sampling defaults are the checkpoint's, and the length is what the context leaves."""
    assert asked().keys() == {"messages", "timeout_ms"}
    assert asked(response_format={"type": "text"}).keys() == {"messages", "timeout_ms"}


def test_messages_reach_the_template_as_they_are() -> None:
    """What clients send back of earlier answers is put into the form that templates know."""
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    messages = [
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "hé"}], "name": "ann"},
        {"role": "assistant", "content": None, "refusal": None, "audio": None, "function_call": None,
         "tool_calls": [{**call, "index": 0}], "annotations": []},
        {"role": "tool", "tool_call_id": "c1", "content": "4"},
        {"role": "assistant", "content": "It is 4.", "tool_calls": None, "reasoning_content": "hm"},
        {"role": "assistant", "content": None, "refusal": "no"},
    ]  # fmt: skip
    client = ApiClient(SCRIPT)
    answer = client.post(CHAT, {"model": "demo", "messages": messages})
    assert answer.status == 200, answer.body
    assert json.loads(client.router.asked["messages"]) == [
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "hé"}], "name": "ann"},
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "4"},
        {"role": "assistant", "content": "It is 4.", "reasoning_content": "hm"},
        {"role": "assistant", "content": "no"},
    ]


def test_what_a_message_has_for_other_servers_does_not_reach_the_template() -> None:
    """Marks for a cache, notes about a text, and places in a stream say nothing to a model."""
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    part = {"type": "text", "text": "a"}
    client = ApiClient(SCRIPT)
    sent = []
    for marks, notes, places in (
        ({"cache_control": {"type": "ephemeral"}}, {"annotations": [{"type": "url_citation"}]}, {"index": 3}),
        ({}, {}, {}),
    ):
        messages = [
            {"role": "user", "content": [{**part, **marks}]},
            {"role": "assistant", "content": "b", "tool_calls": [{**call, **places}], **notes},
            {"role": "tool", "tool_call_id": "c1", "content": [{**part, **marks}]},
        ]
        assert client.post(CHAT, {"model": "demo", "messages": messages}).status == 200
        sent.append(client.router.asked["messages"])
    assert sent[0] == sent[1]
    assert fields_without_effect(TextPart) == {"cache_control"}
    assert fields_without_effect(AssistantMessage) == {"annotations"}


def test_the_tenant_salts_the_prefix_cache_unless_it_is_shared() -> None:
    """A tenant's prompts are found by no other, not even by how long an answer takes."""
    caller = Caller("k", "k", "acme")
    client = ApiClient(SCRIPT, callers={None: caller})
    client.post(CHAT, chat_body())
    assert client.router.asked["cache_salt"] == "acme"
    assert client.router.calls[0].tenant == "acme"
    client = ApiClient(SCRIPT, callers={None: caller}, settings=GatewaySettings(share_prefix_cache=True))
    client.post(CHAT, chat_body())
    assert "cache_salt" not in client.router.asked
    assert client.router.calls[0].tenant == "acme"


@pytest.mark.parametrize(("asked_for", "sent"), [(None, 3), (-50, 3), (7, 7)])
def test_priority_is_bounded_by_the_key(asked_for: int | None, sent: int) -> None:
    """A key's own priority is the most urgent that it may ask for."""
    client = ApiClient(SCRIPT, callers={None: Caller("k", "k", "t", priority=3)})
    client.post(CHAT, chat_body(priority=asked_for))
    assert client.router.asked["priority"] == sent


def test_calls_of_one_conversation_prefer_one_server() -> None:
    """The preference follows tenant, first message and `prompt_cache_key`, and nothing else."""

    def affinity(tenant: str = "t", content: str = "hi", **fields: Any) -> bytes:
        client = ApiClient(SCRIPT, callers={None: Caller("k", "k", tenant)})
        client.post(CHAT, chat_body(content, **fields))
        return client.router.calls[0].affinity

    assert affinity() == affinity(temperature=0.5)
    assert len({affinity(), affinity("u"), affinity(content="ho"), affinity(prompt_cache_key="p")}) == 4


def test_request_ids_are_the_gateways_own() -> None:
    """They cannot be guessed, and no two calls have the same."""
    client = ApiClient(SCRIPT)
    for _ in range(3):
        client.post(CHAT, chat_body())
    ids = {call.request_id for call in client.router.calls}
    assert len(ids) == 3
    assert {len(bytes.fromhex(one)) for one in ids} == {16}


def test_a_model_without_a_template_takes_no_chat() -> None:
    """The error says where else to go."""
    bare = replace(MODEL, card=replace(MODEL.card, takes_messages=False))
    client = ApiClient(SCRIPT, router=FakeRouter(lambda _call: SCRIPT, served=(bare,)))
    answer = client.post(CHAT, chat_body())
    assert answer.error[2:] == ("invalid_value", "messages")
    assert "/v1/completions" in answer.json["error"]["message"]
