"""Requests whose model is another one by the time that they are sent: what the canary cannot take is planned anew."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from tests.fakes.gateway_upstream import FakeRouter, Script, SpokenAnswer, tokens_of
from tests.gateway.api.client import ApiClient
from tests.gateway.api.models import TOOL_MODEL
from trident_ensemble.contract.model_card import Marker, ToolFormat
from trident_gateway.callers import Caller
from trident_gateway.upstream.served_model import GenerateCall, ReplanError, ServedModel
from trident_gateway.upstream.sides import CANARY

STABLE_MODEL = TOOL_MODEL
#: Of another make: it calls tools in another way, by other ids, and has another name, though the alias is the same.
CANARY_MODEL = replace(
    TOOL_MODEL,
    card=replace(
        TOOL_MODEL.card,
        name="demo-next",
        aliases=("demo", *TOOL_MODEL.card.aliases),
        digest="new",
        max_seq_len=64,
        tool_format=ToolFormat.MISTRAL,
        tool_markers={"start": Marker("[TOOL_CALLS]", 7)},
    ),
    preprocessing="next_preprocessing",
    side=CANARY,
    fallback=STABLE_MODEL,
)
SCRIPT = Script([SpokenAnswer(tokens_of("Hello there."), "eos")])
TOOLS = [{"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}]
MESSAGES = [{"role": "user", "content": "hi"}]
BODIES: list[tuple[str, dict[str, Any]]] = [
    ("/v1/chat/completions", {"messages": MESSAGES, "tools": TOOLS}),
    ("/v1/chat/completions", {"messages": MESSAGES, "tools": TOOLS, "stream": True}),
    ("/v1/chat/completions", {"messages": MESSAGES, "response_format": {"type": "json_object"}}),
    ("/v1/completions", {"prompt": "Once"}),
    ("/v1/completions", {"prompt": ["Once", "upon"], "stream": True}),
    ("/v1/responses", {"input": "hi", "tools": [{"type": "function", "name": "f", "parameters": {"type": "object"}}]}),
    ("/v1/responses", {"input": "hi", "stream": True}),
    ("/detokenize", {"tokens": [1, 2]}),
]


def _client(model: ServedModel, *, caller: Caller | None = None) -> ApiClient:
    def say(call: GenerateCall) -> Script:
        if call.model.side == CANARY:
            raise ReplanError(STABLE_MODEL)
        return SCRIPT

    def answer(path: str, _body: bytes) -> bytes:
        if path.startswith("next_"):
            raise ReplanError(STABLE_MODEL)
        return b'{"input_ids": [1, 2, 3]}'

    callers: dict[str | None, Caller] | None = None if caller is None else {None: caller}
    return ApiClient(say, router=FakeRouter(say, served=(model,), json_answers=answer), callers=callers)


def _bodies_without_chance(client: ApiClient) -> list[dict[str, Any]]:
    return [json.loads(call.body) for call in client.router.calls if call.model.side != CANARY]


@pytest.mark.parametrize(("path", "body"), BODIES)
def test_what_the_canary_cannot_take_is_sent_as_if_it_had_been_the_stable_sides(
    path: str, body: dict[str, Any]
) -> None:
    """The same tensors, and the same answer under the stable model's name, held and settled once."""
    plain, replanned = _client(STABLE_MODEL), _client(CANARY_MODEL)
    expected, answer = (client.post(path, {"model": "demo", **body}) for client in (plain, replanned))
    assert answer.status == 200
    assert _bodies_without_chance(replanned) == _bodies_without_chance(plain)
    assert any(call.model.side == CANARY for call in replanned.router.calls)
    assert len({call.deadline for call in replanned.router.calls}) == 1
    assert answer.record.side == "stable"
    assert answer.record.model == expected.record.model == STABLE_MODEL.card.name
    assert CANARY_MODEL.card.name.encode() not in answer.body
    assert len(answer.body) == len(expected.body)
    (reservation,), (as_if,) = replanned.limiter.reservations, plain.limiter.reservations
    assert reservation.settled[0] == as_if.settled[0]


def test_tokens_are_those_of_the_model_that_took_the_call() -> None:
    plain, replanned = _client(STABLE_MODEL), _client(CANARY_MODEL)
    body = {"model": "demo", "prompt": "Once"}
    assert replanned.post("/tokenize", body).json == plain.post("/tokenize", body).json
    assert replanned.post("/tokenize", body).record.side == "stable"


def test_what_the_stable_model_cannot_do_is_refused_in_its_name() -> None:
    bare = replace(STABLE_MODEL, card=replace(STABLE_MODEL.card, takes_messages=False))

    def say(call: GenerateCall) -> Script:
        if call.model.side == CANARY:
            raise ReplanError(bare)
        return SCRIPT

    client = ApiClient(say, router=FakeRouter(say, served=(CANARY_MODEL,)))
    answer = client.post("/v1/chat/completions", {"model": "demo", "messages": MESSAGES})
    assert answer.error == (400, "invalid_request_error", "invalid_value", "messages")
    assert len(client.limiter.reservations[0].settled) == 1


@pytest.mark.parametrize(("allowed", "has_fallback"), [({"demo"}, True), ({"demo-next"}, False)])
def test_a_caller_falls_back_to_what_it_may_use_alone(allowed: set[str], has_fallback: bool) -> None:
    caller = Caller("k", "k", "t", models=frozenset(allowed))
    stable = replace(STABLE_MODEL, card=replace(STABLE_MODEL.card, name="demo-last", aliases=("demo",)))
    client = _client(replace(CANARY_MODEL, fallback=stable), caller=caller)
    client.post("/v1/completions", {"model": "demo", "prompt": "Once"})
    assert (client.router.calls[0].model.fallback is not None) is has_fallback


@pytest.mark.parametrize(("path", "body"), [*BODIES, ("/tokenize", {"prompt": "Once"})])
def test_a_caller_is_known_by_its_key_and_without_one_by_its_conversation(path: str, body: dict[str, Any]) -> None:
    caller = Caller("key1", "key1", "t")
    keyed, keyless, other = _client(STABLE_MODEL, caller=caller), _client(STABLE_MODEL), _client(STABLE_MODEL)
    for client in (keyed, keyless):
        assert client.post(path, {"model": "demo", **body}).status == 200
    text = json.dumps(body).replace("Once", "Twice").replace("hi", "hello").replace("[1, 2]", "[3]")
    assert other.post(path, {"model": "demo", **json.loads(text)}).status == 200
    assert set(keyed.router.identities) == {b"key1"}
    (first,), (second,) = set(keyless.router.identities), set(other.router.identities)
    assert first
    assert first != second
