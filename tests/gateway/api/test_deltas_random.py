"""Joined deltas equal the whole answer, however the model's output is cut into responses and reads."""

from __future__ import annotations

import codecs
from typing import Any

import hypothesis.strategies as st
from hypothesis import given, settings

from tests.fakes.gateway_upstream import Script, SpokenAnswer, Token, tokens_of
from tests.gateway.api.client import ApiClient, chat_body, joined_chat
from tests.gateway.api.test_completion_answers import joined as joined_completion
from tests.gateway.api.test_responses_endpoint import joined_response

LOG_PROBS = st.floats(-30, 0, width=32)


@st.composite
def answers(draw: st.DrawFn) -> SpokenAnswer:
    """Draw an answer whose tokens cut its text anywhere, also inside of characters."""
    raw = draw(st.text(max_size=12)).encode()
    cuts = sorted(draw(st.sets(st.integers(1, max(1, len(raw) - 1)), max_size=len(raw)))) if len(raw) > 1 else []
    pieces = [raw[start:end] for start, end in zip([0, *cuts], [*cuts, len(raw)], strict=True)] if raw else []
    tokens = []
    for piece in pieces:
        other = (draw(st.binary(min_size=1, max_size=3)), draw(LOG_PROBS))
        tokens.append(Token(draw(st.integers(1, 500)), piece, draw(LOG_PROBS), ((piece, draw(LOG_PROBS)), other)))
    return SpokenAnswer(tuple(tokens), draw(st.sampled_from(["eos", "stop", "length"])))


@st.composite
def scripts(draw: st.DrawFn, max_answers: int = 3) -> Script:
    """Draw what a model says, and how it is cut."""
    spoken = draw(st.lists(answers(), min_size=1, max_size=max_answers))
    order = draw(st.lists(st.tuples(st.integers(0, len(spoken) - 1), st.integers(1, 4)), max_size=12))
    return Script(
        spoken,
        prompt=tokens_of(draw(st.text(min_size=1, max_size=5)), 7),
        num_cached=draw(st.integers(0, 3)),
        order=order,
        events_per_read=draw(st.integers(1, 4)),
    )


@settings(max_examples=200, deadline=None)
@given(scripts(), st.sampled_from([None, 0, 1, 2]))
def test_the_deltas_of_a_chat_join_to_its_whole_answer(script: Script, top: int | None) -> None:
    """Text, log probabilities, reasons and usage."""
    num = len(script.answers)
    fields: dict[str, Any] = {"n": num, **({} if top is None else {"logprobs": True, "top_logprobs": top})}
    whole = ApiClient(script).post("/v1/chat/completions", chat_body(**fields)).json
    streamed = ApiClient(script).post(
        "/v1/chat/completions", chat_body(**fields, stream=True, stream_options={"include_usage": True})
    )
    *events, usage, done = streamed.events
    assert done == "[DONE]"
    assert usage["usage"] == whole["usage"]
    for choice, spoken, mine in zip(whole["choices"], script.answers, joined_chat(events, num), strict=True):
        text = b"".join(token.raw for token in spoken.tokens).decode()
        assert mine["content"] == choice["message"]["content"] == text
        assert mine["finish_reason"] == choice["finish_reason"]
        assert mine["logprobs"] == (choice["logprobs"] or {"content": []})["content"]
        if top is not None:
            assert b"".join(bytes(entry["bytes"]) for entry in mine["logprobs"]).decode() == text


@settings(max_examples=200, deadline=None)
@given(scripts(), st.sampled_from([None, 0, 1, 2]), st.booleans())
def test_the_deltas_of_a_completion_join_to_its_whole_answer(script: Script, top: int | None, echo: bool) -> None:
    """Text, log probabilities in the older form, reasons and usage, with and without the prompt."""
    num = len(script.answers)
    body = {"model": "demo", "prompt": "x", "n": num, "logprobs": top, "echo": echo}
    whole = ApiClient(script).post("/v1/completions", body).json
    streamed = ApiClient(script).post(
        "/v1/completions", {**body, "stream": True, "stream_options": {"include_usage": True}}
    )
    *events, usage, done = streamed.events
    assert done == "[DONE]"
    assert usage["usage"] == whole["usage"]
    for choice, spoken, mine in zip(whole["choices"], script.answers, joined_completion(events, num), strict=True):
        tokens = [*(script.prompt if echo else ()), *spoken.tokens]
        assert mine["text"] == choice["text"] == b"".join(token.raw for token in tokens).decode()
        assert mine["finish_reason"] == choice["finish_reason"]
        assert mine["logprobs"] == choice["logprobs"]
        if top is not None:
            assert choice["logprobs"]["text_offset"] == offsets([token.raw for token in tokens])


@settings(max_examples=100, deadline=None)
@given(scripts(max_answers=1), st.booleans())
def test_the_events_of_a_response_join_to_its_whole_answer(script: Script, scored: bool) -> None:
    """The last event holds what a plain answer is, and the deltas join to it."""
    body: dict[str, Any] = {"model": "demo", "input": "x"}
    if scored:
        body.update({"include": ["message.output_text.logprobs"], "top_logprobs": 2})
    whole = ApiClient(script).post("/v1/responses", body).json
    joined, last = joined_response(ApiClient(script).post("/v1/responses", {**body, "stream": True}).body)
    text = b"".join(token.raw for token in script.answers[0].tokens).decode()
    assert [item["content"] for item in last["output"]] == [item["content"] for item in whole["output"]]
    assert (last["usage"], last["status"]) == (whole["usage"], whole["status"])
    assert joined["text"] == whole["output"][0]["content"][0]["text"] == text
    if scored:
        shown = whole["output"][0]["content"][0]["logprobs"]
        assert [entry["token"] for entry in joined["logprobs"]] == [entry["token"] for entry in shown]


def offsets(pieces: list[bytes]) -> list[int]:
    """Return how many characters are complete before each piece."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    found, count = [], 0
    for piece in pieces:
        found.append(count)
        count += len(decoder.decode(piece))
    return found
