"""What a chat is answered: the shapes of whole answers and of streams."""

from __future__ import annotations

from typing import Any

import pytest

from tests.fakes.gateway_upstream import Script, SpokenAnswer, Token, tokens_of
from tests.gateway.api.client import ApiClient, chat_body, joined_chat

CHAT = "/v1/chat/completions"
HELLO = Script([SpokenAnswer(tokens_of("Hello wörld"))])


def test_a_whole_answer_has_the_fields_of_the_api_and_no_others() -> None:
    """Names and values are those of OpenAI's API."""
    answer = ApiClient(HELLO).post(CHAT, chat_body())
    assert answer.status == 200
    body = answer.json
    assert body.pop("id").startswith("chatcmpl-")
    assert isinstance(body.pop("created"), int)
    assert body == {
        "object": "chat.completion",
        "model": "demo",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Hello wörld", "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": {
            "prompt_tokens": 3,
            "completion_tokens": 4,
            "total_tokens": 7,
            "prompt_tokens_details": {"cached_tokens": 1},
        },
    }


def test_a_stream_has_the_role_then_content_then_the_reason_then_done() -> None:
    """Each chunk has the same id, time and model; no chunk mentions a usage that was not asked for."""
    *chunks, done = ApiClient(HELLO).post(CHAT, chat_body(stream=True)).events
    assert done == "[DONE]"
    heads = {(chunk["id"], chunk["object"], chunk["created"], chunk["model"]) for chunk in chunks}
    assert len(heads) == 1
    assert heads.pop()[1::2] == ("chat.completion.chunk", "demo")
    assert all(chunk.keys() == {"id", "object", "created", "model", "choices"} for chunk in chunks)
    choices = [chunk["choices"][0] for chunk in chunks]
    assert [choice["delta"] for choice in choices] == [
        {"role": "assistant", "content": ""}, {"content": "Hel"}, {"content": "lo "}, {"content": "wö"},
        {"content": "rld"}, {},
    ]  # fmt: skip
    assert [choice["finish_reason"] for choice in choices] == [None] * 5 + ["stop"]
    assert all(choice.keys() == {"index", "delta", "logprobs", "finish_reason"} for choice in choices)


@pytest.mark.parametrize("options", [{"include_usage": True}, {"include_usage": False}, {}, None])
def test_usage_comes_with_a_stream_only_where_it_was_asked_for(options: dict[str, bool] | None) -> None:
    """Then every other chunk has a null in its place, and one more chunk has no choices."""
    *chunks, _done = ApiClient(HELLO).post(CHAT, chat_body(stream=True, stream_options=options)).events
    if options and options.get("include_usage"):
        *chunks, last = chunks
        assert last["choices"] == []
        assert last["usage"] == ApiClient(HELLO).post(CHAT, chat_body()).json["usage"]
        assert [chunk["usage"] for chunk in chunks] == [None] * len(chunks)
    assert all(chunk["choices"] for chunk in chunks)


def test_several_answers_come_interleaved_and_each_is_whole() -> None:
    """Every index has its role first and its reason last."""
    script = Script(
        [SpokenAnswer(tokens_of("first")), SpokenAnswer(tokens_of("second one"), "length"), SpokenAnswer(())],
        order=[(1, 1), (0, 1), (1, 2)],
    )
    *chunks, _done = ApiClient(script).post(CHAT, chat_body(stream=True, n=3)).events
    by_index: dict[int, list[Any]] = {0: [], 1: [], 2: []}
    for chunk in chunks:
        (choice,) = chunk["choices"]
        by_index[choice["index"]].append(choice)
    for choices in by_index.values():
        assert choices[0]["delta"] == {"role": "assistant", "content": ""}
        assert choices[-1]["delta"] == {}
        assert [choice["finish_reason"] is None for choice in choices] == [True] * (len(choices) - 1) + [False]
    assert [chunk["choices"][0]["index"] for chunk in chunks[:4]] == [1, 1, 0, 0]
    plain = ApiClient(script).post(CHAT, chat_body(n=3)).json["choices"]
    assert [choice["message"]["content"] for choice in plain] == ["first", "second one", ""]
    assert [choice["finish_reason"] for choice in plain] == ["stop", "length", "stop"]
    assert [choice["content"] for choice in joined_chat(chunks, 3)] == ["first", "second one", ""]


@pytest.mark.parametrize(("reason", "shown"), [("eos", "stop"), ("stop", "stop"), ("length", "length")])
@pytest.mark.parametrize("stream", [False, True])
def test_the_reason_of_the_end_is_openais(reason: str, shown: str, stream: bool) -> None:
    """The engine's words do not reach a client."""
    answer = ApiClient(Script([SpokenAnswer(tokens_of("x"), reason)])).post(CHAT, chat_body(stream=stream))
    last = answer.events[-2] if stream else answer.json
    assert last["choices"][0]["finish_reason"] == shown


@pytest.mark.parametrize("stream", [False, True])
def test_a_cancelled_answer_never_looks_complete(stream: bool) -> None:
    """It is an error, whoever cancelled it."""
    answer = ApiClient(Script([SpokenAnswer(tokens_of("x"), "cancelled")])).post(CHAT, chat_body(stream=stream))
    assert answer.status == 500
    assert answer.json["error"]["type"] == "server_error"


@pytest.mark.parametrize("stream", [False, True])
def test_log_probabilities_have_every_token_with_its_bytes(stream: bool) -> None:
    """A token that is a part of a character shows its bytes, never U+FFFD."""
    script = Script(
        [
            SpokenAnswer(
                (
                    Token(1, b"a", -0.5, ((b"a", -0.5), (b"b", -1.0))),
                    Token(2, b"\xf0\x9f", float("-inf"), ((b"\xf0\x9f", -0.25), (b"c", -2.0))),
                    Token(3, b"\x98\x80", -0.25, ((b"\x98\x80", -0.25), (b"d", -3.0))),
                )
            )
        ]
    )
    answer = ApiClient(script).post(CHAT, chat_body(stream=stream, logprobs=True, top_logprobs=2))
    if stream:
        (choice,) = joined_chat(answer.events)
        found, content = choice["logprobs"], choice["content"]
    else:
        choice = answer.json["choices"][0]
        assert choice["logprobs"].keys() == {"content", "refusal"}
        found, content = choice["logprobs"]["content"], choice["message"]["content"]
    assert content == "a😀"
    assert found == [
        {"token": "a", "bytes": [97], "logprob": -0.5, "top_logprobs": [
            {"token": "a", "bytes": [97], "logprob": -0.5}, {"token": "b", "bytes": [98], "logprob": -1.0}]},
        {"token": "\\xf0\\x9f", "bytes": [240, 159], "logprob": -9999.0, "top_logprobs": [
            {"token": "\\xf0\\x9f", "bytes": [240, 159], "logprob": -0.25},
            {"token": "c", "bytes": [99], "logprob": -2.0}]},
        {"token": "\\x98\\x80", "bytes": [152, 128], "logprob": -0.25, "top_logprobs": [
            {"token": "\\x98\\x80", "bytes": [152, 128], "logprob": -0.25},
            {"token": "d", "bytes": [100], "logprob": -3.0}]},
    ]  # fmt: skip


def test_the_events_of_one_read_leave_with_one_send() -> None:
    """However many responses a read brings, the client's connection is written once."""
    script = Script([SpokenAnswer(tokens_of("Hello wörld, hello"))], events_per_read=100)
    answer = ApiClient(script).post(CHAT, chat_body(stream=True))
    assert answer.num_sends == 1
    assert len(answer.events) > 5


def test_events_are_one_line_each_whatever_the_text() -> None:
    """Line breaks of every kind are escaped, so that no text can end an event or begin another."""
    text = 'a\nb\r\n\n\ndata: [DONE]\n\n\u2028\u2029\x0b\x00"\\'
    answer = ApiClient(Script([SpokenAnswer(tokens_of(text))])).post(CHAT, chat_body(stream=True))
    assert b"\r" not in answer.body
    assert all(line.startswith(b"data: ") or not line for line in answer.body.split(b"\n"))
    assert joined_chat(answer.events)[0]["content"] == text


def test_an_alias_is_answered_by_the_models_own_name() -> None:
    """As OpenAI answers an alias with the version that it stands for."""
    assert ApiClient(HELLO).post(CHAT, {**chat_body(), "model": "gpt-demo"}).json["model"] == "demo"
