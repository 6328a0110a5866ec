"""The models that a caller is shown."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.fakes.gateway_upstream import CARD, MODEL, FakeRouter, Script, SpokenAnswer
from tests.gateway.api.client import ApiClient, chat_body
from trident_gateway.callers import ANYBODY, Caller

SCRIPT = Script([SpokenAnswer(())])
OTHER = replace(MODEL, card=replace(CARD, name="other", aliases=(), created=5))


def client(caller: Caller = ANYBODY) -> ApiClient:
    """Return a client of two models."""
    return ApiClient(SCRIPT, callers={None: caller}, router=FakeRouter(lambda _call: SCRIPT, served=(OTHER, MODEL)))


def test_the_list_has_every_model_under_each_of_its_names() -> None:
    """With the fields of the API and no others."""
    body = client().get("/v1/models").json
    assert body == {
        "object": "list",
        "data": [
            {"id": name, "object": "model", "created": created, "owned_by": "trident"}
            for name, created in (("demo", CARD.created), ("gpt-demo", CARD.created), ("other", 5))
        ],
    }


@pytest.mark.parametrize(("allowed", "seen"), [("other", ["other"]), ("gpt-demo", ["demo", "gpt-demo"]), ("x", [])])
def test_a_caller_sees_its_own_models_alone(allowed: str, seen: list[str]) -> None:
    """In the list and one by one."""
    own = client(Caller("k", "k", "t", models=frozenset({allowed})))
    assert [model["id"] for model in own.get("/v1/models").json["data"]] == seen
    for name in ("demo", "gpt-demo", "other", "absent"):
        answer = own.get("/v1/models/{model:path}", {"model": name})
        if name in seen:
            assert (answer.status, answer.json["id"]) == (200, name)
        else:
            assert answer.error == (404, "invalid_request_error", "model_not_found", "model")


def test_one_model_says_in_headers_and_a_field_of_its_own_what_the_api_has_no_fields_for() -> None:
    """Its digest, by which versions that must agree are compared, its context, and its side in a rollout."""
    answer = client().get("/v1/models/{model:path}", {"model": "demo"})
    assert answer.headers["x-trident-digest"] == CARD.digest
    assert answer.headers["x-trident-max-seq-len"] == str(CARD.max_seq_len)
    own = {"digest": CARD.digest, "max_seq_len": CARD.max_seq_len, "side": "stable"}
    listed = client().get("/v1/models").json["data"][0]
    assert answer.json == {**listed, "x_trident": own}


def test_embeddings_are_refused_clearly() -> None:
    """There is an answer, and it says why."""
    answer = client().post("/v1/embeddings", {"model": "demo", "input": "x"})
    assert answer.error == (404, "invalid_request_error", "not_found", None)
    assert "embeddings" in answer.json["error"]["message"]


def test_an_alias_of_two_models_stands_for_one_of_them() -> None:
    """It gives a right to no other, and is shown once."""
    thief = replace(OTHER, card=replace(OTHER.card, aliases=("gpt-demo", "gpt-demo", "demo")))
    router = FakeRouter(lambda _call: SCRIPT, served=(MODEL, thief))
    names = [model["id"] for model in ApiClient(SCRIPT, router=router).get("/v1/models").json["data"]]
    assert names == ["demo", "gpt-demo", "other"]
    for right, name, status in (("gpt-demo", "other", 404), ("demo", "other", 404), ("gpt-demo", "demo", 200)):
        caller = Caller("k", "k", "t", models=frozenset({right}))
        own = ApiClient(SCRIPT, callers={None: caller}, router=router)
        assert own.get("/v1/models/{model:path}", {"model": name}).status == status


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/v1/chat/completions", chat_body()),
        ("POST", "/tokenize", {"model": "demo", "prompt": "x"}),
        ("GET", "/v1/models/{model:path}", None),
        ("GET", "/v1/models", None),
    ],
)
def test_while_no_server_has_been_reached_the_client_is_to_try_again(method: str, path: str, body: object) -> None:
    """Nobody knows yet which models there are, so none of them is missing."""
    client = ApiClient(SCRIPT, router=FakeRouter(lambda _call: SCRIPT, served=()))
    answer = client.post(path, body) if method == "POST" else client.get(path, {"model": "demo"})
    assert answer.error == (503, "service_unavailable_error", "no_upstream", None)
    assert answer.headers["retry-after"] == "1"
