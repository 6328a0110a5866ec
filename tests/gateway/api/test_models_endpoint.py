"""The models that a caller is shown."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.fakes.gateway_upstream import CARD, MODEL, FakeRouter, Script, SpokenAnswer
from tests.gateway.api.client import ApiClient
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


def test_one_model_says_in_headers_what_the_api_has_no_fields_for() -> None:
    """Its digest, by which versions that must agree are compared, and its context."""
    answer = client().get("/v1/models/{model:path}", {"model": "demo"})
    assert answer.headers["x-trident-digest"] == CARD.digest
    assert answer.headers["x-trident-max-seq-len"] == str(CARD.max_seq_len)


def test_embeddings_are_refused_clearly() -> None:
    """There is an answer, and it says why."""
    answer = client().post("/v1/embeddings", {"model": "demo", "input": "x"})
    assert answer.error == (404, "invalid_request_error", "not_found", None)
    assert "embeddings" in answer.json["error"]["message"]
