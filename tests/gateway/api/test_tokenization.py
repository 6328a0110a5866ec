"""Text to token ids and back, by the model's own server."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.fakes.gateway_upstream import FakeRouter, Script, SpokenAnswer, refusal, tokens_of
from tests.gateway.api.client import ApiClient

SCRIPT = Script([SpokenAnswer((), "length")], prompt=tokens_of("wörd", 7))


def client(answer: bytes = b'{"model_name": "preprocessing", "input_ids": [4, 5, 6]}') -> tuple[ApiClient, list[Any]]:
    """Return a client, and the calls of models that are no ensembles."""
    calls: list[Any] = []

    def say(path: str, body: bytes) -> bytes:
        calls.append((path, json.loads(body)))
        return answer

    return ApiClient(SCRIPT, router=FakeRouter(lambda _call: SCRIPT, json_answers=say)), calls


@pytest.mark.parametrize(
    ("fields", "asked"),
    [
        ({"prompt": "hi"}, {"text_input": "hi"}),
        ({"prompt": "hi", "add_special_tokens": False}, {"text_input": "hi", "add_special_tokens": False}),
        ({"messages": [{"role": "user", "content": "hi"}]}, {"messages": '[{"role":"user","content":"hi"}]'}),
        (
            {
                "messages": [{"role": "user", "content": "hi"}],
                "tools": [{"type": "function", "function": {"name": "f", "strict": True}}],
                "add_generation_prompt": False,
                "chat_template_kwargs": {"a": 1},
            },
            {
                "messages": '[{"role":"user","content":"hi"}]',
                "tools": '[{"type":"function","function":{"name":"f"}}]',
                "add_generation_prompt": False,
                "chat_template_kwargs": '{"a":1}',
            },
        ),
    ],
)
def test_tokenize_asks_the_preprocessing_of_the_model(fields: dict[str, Any], asked: dict[str, Any]) -> None:
    """What it is given, it is given as a chat or a completion would give it."""
    own, calls = client()
    answer = own.post("/tokenize", {"model": "demo", **fields})
    assert answer.json == {"count": 3, "max_model_len": 256, "tokens": [4, 5, 6], "token_strs": None}
    assert calls == [("preprocessing/generate", {**asked, "max_tokens": 1})]
    assert own.limiter.reservations[0].settled == [(0, 0)]


def test_tokenize_reads_one_token_as_one() -> None:
    """Triton writes a tensor of one element as that element."""
    assert client(b'{"input_ids": 4}')[0].post("/tokenize", {"model": "demo", "prompt": "a"}).json["tokens"] == [4]


def test_tokenize_makes_a_servers_nonsense_the_servers_fault() -> None:
    """500, and nothing of it is quoted."""
    answer = client(b'{"ids": "canary"}')[0].post("/tokenize", {"model": "demo", "prompt": "a"})
    assert answer.error == (500, "server_error", None, None)
    assert b"canary" not in answer.body


@pytest.mark.parametrize(
    ("fields", "param"),
    [({"prompt": "hi"}, "prompt"), ({"messages": [{"role": "user", "content": "hi"}]}, "messages")],
)
def test_tokenize_says_a_refusal_in_the_clients_terms(fields: dict[str, Any], param: str) -> None:
    """The prompt's field, whichever of the two it was."""

    def say(_path: str, _body: bytes) -> bytes:
        raise refusal("[INVALID_ARG] context_length: text_input: a prompt of 900 tokens is too long")

    own = ApiClient(SCRIPT, router=FakeRouter(lambda _call: SCRIPT, json_answers=say))
    answer = own.post("/tokenize", {"model": "demo", **fields})
    assert answer.error == (400, "invalid_request_error", "context_length_exceeded", param)
    assert own.limiter.reservations[0].settled == [(0, 0)]


def test_detokenize_echoes_tokens_and_generates_none() -> None:
    """Special tokens are shown, because they are tokens too."""
    own, _ = client()
    answer = own.post("/detokenize", {"model": "demo", "tokens": [7, 8]})
    assert answer.json == {"prompt": "wörd"}
    assert answer.record.finish_reasons == ()
    asked = own.router.asked
    assert asked == {"prompt_token_ids": [7, 8], "echo": True, "max_tokens": 0, "skip_special_tokens": False}
