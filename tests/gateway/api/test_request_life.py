"""The life of a request: who may, what is held, what is settled, and what becomes of every failure."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from tests.fakes.gateway_upstream import FakeExchange, FakeRouter, Script, SpokenAnswer, refusal, tokens_of
from tests.gateway.api.client import Answer, ApiClient, chat_body
from trident_gateway.callers import Caller
from trident_gateway.errors import (
    ApiError,
    DeadlineError,
    DrainingError,
    EngineFaultError,
    NoUpstreamError,
    OverloadedError,
    RateLimitError,
    UpstreamLostError,
)
from trident_gateway.settings import GatewaySettings

CHAT = "/v1/chat/completions"
HELLO = Script([SpokenAnswer(tokens_of("Hello wörld"))])
PATHS = [
    (CHAT, chat_body()),
    ("/v1/completions", {"model": "demo", "prompt": "hi"}),
    ("/v1/responses", {"model": "demo", "input": "hi"}),
    ("/tokenize", {"model": "demo", "prompt": "hi"}),
    ("/detokenize", {"model": "demo", "tokens": [1]}),
    ("/v1/embeddings", {"model": "demo", "input": "hi"}),
]
GENERATING = PATHS[:3]


def failing(error: ApiError) -> Any:
    """Return a model whose server refuses every call."""

    def say(_call: Any) -> Script:
        raise error

    return say


@pytest.mark.parametrize(("path", "body"), PATHS)
def test_nobody_who_is_not_known_gets_anything(path: str, body: Any) -> None:
    """Also not the news that a body is wrong, or that a model is not there."""
    client = ApiClient(HELLO, callers={"Bearer good": Caller("k", "k", "t")})
    for wrong in (body, b"{", {"model": "absent"}):
        answer = client.post(path, wrong)
        assert answer.error == (401, "invalid_request_error", "invalid_api_key", None)
        assert answer.headers["www-authenticate"] == "Bearer"
    assert client.router.calls == []


@pytest.mark.parametrize(("path", "body"), PATHS[:5])
def test_a_model_that_is_not_there_and_one_that_is_not_allowed_are_the_same(path: str, body: Any) -> None:
    """404, and nothing tells which of them it was."""
    caller = Caller("k", "k", "t", models=frozenset({"other"}))
    not_allowed = ApiClient(HELLO, callers={None: caller}).post(path, body)
    assert not_allowed.error == (404, "invalid_request_error", "model_not_found", "model")
    absent = ApiClient(HELLO).post(path, {**body, "model": "absent"})
    assert absent.body == not_allowed.body.replace(b"`demo`", b"`absent`")


def test_a_key_for_an_alias_opens_the_model() -> None:
    """A model has one identity, whatever it is called."""
    client = ApiClient(HELLO, callers={None: Caller("k", "k", "t", models=frozenset({"gpt-demo"}))})
    assert client.post(CHAT, chat_body()).status == 200


@pytest.mark.parametrize(("path", "body"), GENERATING)
@pytest.mark.parametrize("stream", [False, True])
def test_what_was_used_is_what_is_settled_shown_and_logged(path: str, body: Any, stream: bool) -> None:
    """One count for clients, limits and the log."""
    client = ApiClient(HELLO, callers={None: Caller("key1", "k", "acme")})
    answer = client.post(path, {**body, "stream": stream})
    (reservation,) = client.limiter.reservations
    assert reservation.corrected == 3
    assert set(reservation.settled) == {(3, 4)}
    assert answer.headers["x-ratelimit-limit-requests"] == "60"
    record = answer.record
    assert (record.num_input_tokens, record.num_cached_tokens, record.num_output_tokens) == (3, 1, 4)
    assert (record.key_id, record.tenant, record.model, record.finish_reasons) == ("key1", "acme", "demo", ("stop",))
    assert record.upstream == "http://fake:8000"
    assert record.upstream_id == client.router.calls[0].request_id
    assert client.router.exchanges[0].is_closed


@pytest.mark.parametrize(
    ("fields", "held"),
    [
        ({}, (8, 256)),
        ({"max_tokens": 5}, (8, 5)),
        ({"max_completion_tokens": 5, "n": 3}, (8, 15)),
        ({"max_tokens": 200_000}, (8, 256)),
    ],
)
def test_a_request_holds_what_it_may_use(fields: dict[str, Any], held: tuple[int, int]) -> None:
    """Input by its bytes, output by its bound, or by the context where it has none."""
    script = Script([SpokenAnswer(tokens_of("x"))] * fields.get("n", 1))
    client = ApiClient(script)
    assert client.post(CHAT, chat_body(**fields)).status == 200
    assert client.limiter.reservations[0].held == held


def test_settling_comes_before_the_end_is_seen() -> None:
    """A client that reads the end and asks again at once finds its slot free."""
    client = ApiClient(HELLO)
    seen: list[int] = []

    class Watching(Answer):
        async def end_events(self, events: bytes = b"") -> None:
            seen.append(len(client.limiter.reservations[0].settled))
            await super().end_events(events)

        async def send_json(self, body: bytes, status: int = 200) -> None:
            seen.append(len(client.limiter.reservations[-1].settled))
            await super().send_json(body, status)

    for stream in (True, False):
        body = json.dumps(chat_body(stream=stream)).encode()
        asyncio.run(client.call("POST", CHAT, body, answer=Watching()))
    assert seen == [1, 1]


@pytest.mark.parametrize(("path", "body"), GENERATING)
@pytest.mark.parametrize("stream", [False, True])
def test_a_refusal_by_a_limit_is_the_answer(path: str, body: Any, stream: bool) -> None:
    """Nothing reaches a server, and nothing is settled."""
    client = ApiClient(HELLO)
    client.limiter.refusal = RateLimitError("slow down", kind="requests", limit="rpm", retry_after_s=1.2)
    answer = client.post(path, {**body, "stream": stream})
    assert answer.error == (429, "requests", "rate_limit_exceeded", None)
    assert (answer.headers["retry-after"], answer.headers["retry-after-ms"]) == ("2", "1200")
    assert client.router.calls == []


WIRE = [
    ("[INVALID_ARG] context_length: max_tokens: 300 after a prompt of 20 tokens is too large: 256",
     400, "invalid_request_error", "context_length_exceeded", "PROMPT"),
    ("[INVALID_ARG] context_length: text_input: a prompt of 900 tokens is too long: 256",
     400, "invalid_request_error", "context_length_exceeded", "PROMPT"),
    ("[INVALID_ARG] context_length: messages: a prompt of 900 tokens is too long: 256",
     400, "invalid_request_error", "context_length_exceeded", "PROMPT"),
    ("[INVALID_ARG] max_tokens: must be at least 1", 400, "invalid_request_error", "invalid_value", "MAX_TOKENS"),
    ("[INVALID_ARG] top_p: must be at most 1", 400, "invalid_request_error", "invalid_value", "top_p"),
    ("[UNAVAILABLE] queue_full: the queue is full", 503, "service_unavailable_error", "server_is_overloaded", None),
    ("[UNAVAILABLE] draining: the server is shutting down", 503, "service_unavailable_error", "draining", None),
    ("[UNAVAILABLE] timeout: timeout_ms: 5 ms have passed", 504, "timeout_error", "timeout", None),
    ("[UNAVAILABLE] too_late: timeout_ms: 5 ms are not enough", 504, "timeout_error", "timeout", None),
    ("[UNAVAILABLE] something else", 503, "service_unavailable_error", "server_is_overloaded", None),
    ("[INTERNAL] /srv/secret.py failed on 'canary'", 500, "server_error", None, None),
    ("an error that is none of ours, 'canary'", 500, "server_error", None, None),
]  # fmt: skip
NAMES = {
    CHAT: {"PROMPT": "messages", "MAX_TOKENS": "max_tokens"},
    "/v1/completions": {"PROMPT": "prompt", "MAX_TOKENS": "max_tokens"},
    "/v1/responses": {"PROMPT": "input", "MAX_TOKENS": "max_output_tokens"},
}


@pytest.mark.parametrize("case", WIRE, ids=[case[0][:40] for case in WIRE])
@pytest.mark.parametrize(("path", "body"), GENERATING)
@pytest.mark.parametrize("stream", [False, True])
def test_errors_of_the_ensemble_are_errors_of_the_api(
    path: str, body: Any, stream: bool, case: tuple[str, int, str, str | None, str | None]
) -> None:
    """With a status of their own also for a stream, in the client's words, without what is the server's business."""
    message, status, kind, code, param = case
    client = ApiClient(failing(refusal(f"in ensemble 'ensemble', {message}")))
    answer = client.post(path, {**body, "stream": stream})
    assert answer.error == (status, kind, code, NAMES[path].get(param or "", param)), answer.body
    assert b"canary" not in answer.body
    assert b"secret" not in answer.body
    if code == "context_length_exceeded":
        numbers = [number for number in ("300", "20", "900", "256") if number in message]
        assert all(number.encode() in answer.body for number in numbers)
    assert client.limiter.reservations[0].settled == [(0, 0)]


@pytest.mark.parametrize(
    ("fields", "message", "code", "param"),
    [
        ({"stop": ["x"]}, "stop_words: 2000 bytes are more than", "invalid_value", "stop"),
        ({"n": 5}, "num_return_sequences: must be from 1 to 4", "invalid_value", "n"),
        ({"logprobs": True}, "num_top_log_probs: must be", "invalid_value", "top_logprobs"),
        ({"logit_bias": {"999": 1}}, "logit_bias: '999' is not a token id", "invalid_value", "logit_bias"),
        ({"stop_token_ids": [9]}, "stop_token_ids: every id must be", "invalid_value", "stop_token_ids"),
        ({}, "messages: [0].content: the template leaves it out (role 'critic')", "invalid_value",
         "messages[0].content"),
        ({}, "messages: must be a list", "invalid_value", "messages"),
        ({"chat_template_kwargs": {"a": 1}}, "chat_template_kwargs: a cannot be given here", "invalid_value",
         "chat_template_kwargs"),
        ({"max_completion_tokens": 3}, "min_tokens: must be at most max_tokens 3", "invalid_value", "min_tokens"),
        ({"response_format": {"type": "json_object"}}, "invalid_guide: guided_decoding_guide: impossible",
         "invalid_json_schema", "response_format"),
        ({"guided_regex": "("}, "invalid_guide: guided_decoding_guide: malformed", "invalid_json_schema",
         "guided_regex"),
        ({"guided_choice": ["a"]}, "guided_decoding_guide_type: unknown", "invalid_value", "guided_choice"),
        ({}, "cache_salt: is too long", "invalid_value", None),
    ],
)  # fmt: skip
def test_a_refused_tensor_is_named_by_its_field(
    fields: dict[str, Any], message: str, code: str, param: str | None
) -> None:
    """The client learns which of its own fields was at fault."""
    answer = ApiClient(failing(refusal(f"[INVALID_ARG] {message}"))).post(CHAT, chat_body(**fields))
    assert answer.error == (400, "invalid_request_error", code, param), answer.body


def test_completions_name_their_own_fields() -> None:
    """`logprobs` is what asks for the likeliest tokens there."""
    client = ApiClient(failing(refusal("[INVALID_ARG] num_top_log_probs: must be")))
    answer = client.post("/v1/completions", {"model": "demo", "prompt": "x", "logprobs": 3})
    assert answer.error[2:] == ("invalid_value", "logprobs")


@pytest.mark.parametrize("error", [OverloadedError(), DrainingError(), NoUpstreamError(), DeadlineError()])
def test_errors_of_the_way_pass_as_they_are(error: ApiError) -> None:
    """With their headers."""
    answer = ApiClient(failing(error)).post(CHAT, chat_body())
    assert answer.error == (error.status, error.type, error.code, error.param)
    assert {name.encode(): value.encode() for name, value in answer.headers.items()}.items() >= dict(
        error.headers
    ).items()


@pytest.mark.parametrize("failure", [UpstreamLostError(), EngineFaultError(), DeadlineError(), DrainingError()])
def test_a_failure_after_the_first_byte_is_the_last_event(failure: ApiError) -> None:
    """An error event, then the end, and no `[DONE]`; what was used by then is settled."""
    script = Script([SpokenAnswer(tokens_of("Hello wörld"))], fails_after=2, failure=failure)
    for path, body in GENERATING[:2]:
        client = ApiClient(script)
        answer = client.post(path, {**body, "stream": True})
        assert answer.status == 200
        assert answer.events[-1] == {
            "error": {"message": failure.message, "type": failure.type, "code": failure.code, "param": None}
        }
        assert "[DONE]" not in answer.events
        assert set(client.limiter.reservations[0].settled) == {(3, 2)}
        assert client.router.exchanges[0].is_closed


@pytest.mark.parametrize(("path", "body"), GENERATING)
def test_a_failure_before_a_whole_answer_has_a_status(path: str, body: Any) -> None:
    """Nothing of a plain answer is sent before all of it is there."""
    script = Script([SpokenAnswer(tokens_of("Hello"))], fails_after=0, failure=UpstreamLostError())
    assert ApiClient(script).post(path, body).error == (500, "server_error", None, None)


@pytest.mark.parametrize(("path", "body"), GENERATING)
@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_without_its_end_is_no_answer(path: str, body: Any, stream: bool) -> None:
    """A server that closes the stream before every sequence has ended is lost."""

    class Cut(FakeRouter):
        async def open(self, call: Any) -> FakeExchange:
            exchange = await super().open(call)
            exchange._events = exchange._events[:-1]
            return exchange

    client = ApiClient(HELLO, router=Cut(lambda _call: HELLO))
    answer = client.post(path, {**body, "stream": stream})
    assert b"[DONE]" not in answer.body
    assert b"lost" in answer.body
    assert b"response.completed" not in answer.body


@pytest.mark.parametrize(("path", "body"), GENERATING)
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("moment", ["open", "read", "send"])
def test_a_client_that_leaves_costs_what_it_used_and_nothing_more(
    path: str, body: Any, stream: bool, moment: str
) -> None:
    """At every moment: the exchange is closed, and what was held is settled once with the tokens until then."""
    reached = asyncio.Event()

    class HangingExchange(FakeExchange):
        async def read(self) -> Any:
            if moment == "read" and self._num_read >= (1 if stream else 0):
                reached.set()
                await asyncio.Event().wait()
            return await super().read()

    class Hanging(FakeRouter):
        async def open(self, call: Any) -> FakeExchange:
            if moment == "open":
                reached.set()
                await asyncio.Event().wait()
            self.calls.append(call)
            self.exchanges.append(HangingExchange(HELLO, call))
            return self.exchanges[-1]

    class Stuck(Answer):
        async def send_events(self, events: bytes) -> None:
            if moment == "send":
                reached.set()
                await asyncio.Event().wait()
            await super().send_events(events)

        async def send_json(self, body: bytes, status: int = 200) -> None:
            if moment == "send":
                reached.set()
                await asyncio.Event().wait()
            await super().send_json(body, status)

    client = ApiClient(HELLO, router=Hanging(lambda _call: HELLO))

    async def run() -> None:
        raw = json.dumps({**body, "stream": stream}).encode()
        task = asyncio.ensure_future(client.call("POST", path, raw, answer=Stuck()))
        await asyncio.wait_for(reached.wait(), 60)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(run())
    (reservation,) = client.limiter.reservations
    used = {("open", False): (0, 0), ("open", True): (0, 0), ("read", False): (None, 0), ("read", True): (3, 1)}
    used.update({("send", False): (3, 4), ("send", True): (3, 1)})
    assert set(reservation.settled) == {used[moment, stream]}
    assert all(exchange.is_closed for exchange in client.router.exchanges)


def test_a_client_that_leaves_while_several_prompts_run_ends_all_of_them() -> None:
    """None of the reads that wait is forgotten."""
    reached = asyncio.Event()

    class Hanging(FakeExchange):
        async def read(self) -> Any:
            reached.set()
            await asyncio.Event().wait()

    class HangingRouter(FakeRouter):
        async def open(self, call: Any) -> FakeExchange:
            self.exchanges.append(Hanging(HELLO, call))
            return self.exchanges[-1]

    client = ApiClient(HELLO, router=HangingRouter(lambda _call: HELLO))

    async def run() -> int:
        raw = json.dumps({"model": "demo", "prompt": ["a", "b", "c"]}).encode()
        task = asyncio.ensure_future(client.call("POST", "/v1/completions", raw))
        await asyncio.wait_for(reached.wait(), 60)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return len(asyncio.all_tasks())

    assert asyncio.run(run()) == 1
    assert [exchange.is_closed for exchange in client.router.exchanges] == [True] * 3
    assert set(client.limiter.reservations[0].settled) == {(None, 0)}


def test_n_is_capped_by_the_setting() -> None:
    """The refusal names the cap."""
    client = ApiClient(HELLO, settings=GatewaySettings(max_n=2))
    answer = client.post(CHAT, chat_body(n=3))
    assert answer.error[2:] == ("invalid_value", "n")
    assert "2" in answer.json["error"]["message"]


def test_a_response_that_makes_no_sense_is_the_servers_fault() -> None:
    """Its texts are quoted nowhere."""

    class Nonsense(FakeRouter):
        async def open(self, call: Any) -> FakeExchange:
            exchange = await super().open(call)
            exchange._events[0].sequence_index = 7
            return exchange

    client = ApiClient(HELLO, router=Nonsense(lambda _call: HELLO))
    assert client.post(CHAT, chat_body()).error == (500, "server_error", None, None)
