"""Requests whose model is another one by the time that they are sent: what the canary cannot take is planned anew."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from tests.fakes.gateway_upstream import FakeRouter, Script, SpokenAnswer, tokens_of
from tests.gateway.api.client import ApiClient, Request
from tests.gateway.api.models import TOOL_MODEL
from trident_ensemble.contract.model_card import Marker, ToolFormat
from trident_gateway.api import tokenization
from trident_gateway.callers import ANYBODY, Caller
from trident_gateway.observing.metrics import Metrics
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


def _client(model: ServedModel, *, caller: Caller | None = None, is_fallback: bool = True) -> ApiClient:
    def say(call: GenerateCall) -> Script:
        if call.model.side == CANARY:
            raise ReplanError(STABLE_MODEL, is_fallback=is_fallback)
        return SCRIPT

    def answer(path: str, _body: bytes) -> bytes:
        if path.startswith("next_"):
            raise ReplanError(STABLE_MODEL, is_fallback=is_fallback)
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
            raise ReplanError(bare, is_fallback=True)
        return SCRIPT

    client = ApiClient(say, router=FakeRouter(say, served=(CANARY_MODEL,)))
    answer = client.post("/v1/chat/completions", {"model": "demo", "messages": MESSAGES})
    assert answer.error == (400, "invalid_request_error", "invalid_value", "messages")
    assert len(client.limiter.reservations[0].settled) == 1
    assert (answer.record.side, answer.record.fallback_from) == ("stable", CANARY_MODEL.card.name)


@pytest.mark.parametrize("is_fallback", [True, False])
@pytest.mark.parametrize(("path", "body"), [*BODIES, ("/tokenize", {"prompt": "Once"})])
def test_a_request_for_text_that_the_canary_could_not_take_counts_once(
    path: str, body: dict[str, Any], is_fallback: bool
) -> None:
    """However many prompts it has; nor do questions about tokens, and what was planned anew for another reason."""
    answer = _client(CANARY_MODEL, is_fallback=is_fallback).post(path, {"model": "demo", **body})
    metrics = Metrics()
    metrics.count_request(answer.record)
    lines = [line for line in metrics.render().decode().splitlines() if "canary_fallbacks_total{" in line]
    is_counted = is_fallback and not path.endswith("tokenize")
    assert lines == ['trident_gateway_canary_fallbacks_total{model="demo-next"} 1'] * is_counted


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"messages": MESSAGES}),
        ("/v1/chat/completions", {"messages": MESSAGES, "stream": True}),
        ("/v1/responses", {"input": "hi"}),
        ("/v1/completions", {"prompt": []}),
        ("/tokenize", {}),
    ],
)
def test_what_a_canary_refuses_counts_as_refused_by_it(path: str, body: dict[str, Any]) -> None:
    """Also what is not sent to a server because its card cannot do it."""
    bare = replace(CANARY_MODEL, card=replace(CANARY_MODEL.card, takes_messages=False))
    answer = _client(bare, caller=Caller("key1", "key1", "t")).post(path, {"model": "demo", **body})
    assert answer.status == 400
    assert (answer.record.side, answer.record.model) == (CANARY, "demo-next")


def test_what_finds_no_model_counts_for_none() -> None:
    caller = Caller("key1", "key1", "t", models=frozenset({"another"}))
    for model in ("demo", "absent"):
        answer = _client(CANARY_MODEL, caller=caller).post("/v1/completions", {"model": model, "prompt": "Once"})
        assert (answer.status, answer.record.side, answer.record.model) == (404, "stable", "")


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
    assert len(keyless.router.identities) > 1  # by one name after another
    (first,), (second,) = set(keyless.router.identities), set(other.router.identities)
    assert first
    assert first != second


def test_what_a_conversation_is_known_by_is_made_once_for_all_names_of_its_model() -> None:
    """It may be made of megabytes."""
    num_made = 0

    def conversation() -> bytes:
        nonlocal num_made
        num_made += 1
        return b"hi"

    client = _client(STABLE_MODEL)
    client.context.find(Request(b"", {}, {}), ANYBODY, "demo", conversation)
    assert len(client.router.identities) > 1
    assert num_made == 1


def test_tokens_of_a_prompt_are_asked_for_with_what_the_side_was_chosen_by(monkeypatch: pytest.MonkeyPatch) -> None:
    """So the whole of it is rendered once."""
    rendered: list[object] = []

    def render(messages: Any) -> str:
        rendered.append(messages)
        return "[]"

    monkeypatch.setattr(tokenization, "render_messages", render)
    assert _client(STABLE_MODEL).post("/tokenize", {"model": "demo", "messages": MESSAGES}).status == 200
    assert len(rendered) == 1


def _turns(path: str, opening: str, **fields: Any) -> list[bytes]:
    """Return by what each turn of a conversation, which sends all before it, is put on a side."""
    turns: list[dict[str, str]] = [{"role": "user", "content": opening}]
    found: list[bytes] = []
    for _ in range(3):
        client = _client(STABLE_MODEL)
        key = "input" if path.endswith("responses") else "messages"
        assert client.post(path, {"model": "demo", key: turns, **fields}).status == 200
        (identity,) = set(client.router.identities)
        found.append(identity)
        turns += [{"role": "assistant", "content": "Yes."}, {"role": "user", "content": "And then?"}]
    return found


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/v1/chat/completions", {}),
        ("/v1/responses", {}),
        ("/v1/responses", {"instructions": "be brief"}),
    ],
)
def test_turns_of_a_conversation_stay_on_one_side(path: str, fields: dict[str, Any]) -> None:
    """And conversations with the same instructions are still divided."""
    first, second = _turns(path, "hi", **fields), _turns(path, "hello", **fields)
    assert len(set(first)) == len(set(second)) == 1
    assert first != second
