"""The trial of a canary before it gets a caller: one request for each kind of endpoint, answered right.

Owns the requests and what a right answer is. Never knows a weight.
"""

from __future__ import annotations

import http.client
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any
from urllib.parse import quote

from trident_ensemble.contract.errors import TridentError
from trident_tools.rollouts.api_client import ApiClient, NoAnswerError, Reply

_NUM_TOKENS = 8
_PROMPT = "Once upon a time"
_DIGEST = "x-trident-digest"
_REASONS = ("stop", "length", "tool_calls")


class TrialError(TridentError):
    """A canary that must not get callers.

    Args:
        message: what was asked, and what is wrong with the answer.
        cause: the word for it in metrics: `not_ready`, `trial` or `other_digest`.
    """

    def __init__(self, message: str, cause: str = "trial") -> None:
        super().__init__(message)
        self.cause = cause


def digests(client: ApiClient) -> dict[str, str]:
    """Return the digest of tokenizer and chat template of each model; its names are those that clients use.

    Raises:
        TrialError: the models cannot be listed, or there is none.
    """
    listed = _ask(lambda: client.get("/v1/models"), "GET /v1/models")
    entries = listed.body.get("data") if isinstance(listed.body, dict) else None
    names = [str(entry.get("id")) for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []
    if not names:
        raise TrialError("GET /v1/models: lists no model")
    found: dict[str, str] = {}
    for name in names:
        path = f"/v1/models/{quote(name, safe='')}"
        found[name] = _ask(partial(client.get, path), f"GET {path}").headers.get(_DIGEST, "")
    return found


def try_model(client: ApiClient, name: str, check: Callable[[], None]) -> list[str]:
    """Ask a model everything once; return the kinds of requests that it has answered.

    Args:
        client: of the model's server alone.
        name: of the model.
        check: called before each request; what it raises ends the trial.

    Raises:
        TrialError: an answer is missing or wrong.
    """
    common: dict[str, Any] = {"model": name, "max_tokens": _NUM_TOKENS, "temperature": 0}
    kinds = {
        "completions": ("/v1/completions", {**common, "prompt": _PROMPT}, "text"),
        "chat": ("/v1/chat/completions", {**common, "messages": [{"role": "user", "content": _PROMPT}]}, "message"),
    }
    answered: list[str] = []
    for kind, (path, body, part) in kinds.items():
        check()
        plain = client_post(client, path, body)
        if kind == "chat" and _has_no_template(plain):
            continue
        _expect(plain, path, name)
        _check_plain(plain.body, path, name, part)
        check()
        stream = client_post(client, path, {**body, "stream": True, "stream_options": {"include_usage": True}})
        _expect(stream, f"{path}, streamed", name)
        _check_stream(stream, f"{path}, streamed", name)
        answered += [kind, f"{kind} streamed"]
    check()
    tokens = client_post(client, "/tokenize", {"model": name, "prompt": _PROMPT})
    _expect(tokens, "/tokenize", name)
    ids = tokens.body.get("tokens") if isinstance(tokens.body, dict) else None
    if not isinstance(ids, list) or not ids or tokens.body.get("count") != len(ids):
        raise TrialError(f"/tokenize, model {name}: no tokens in the answer")
    return [*answered, "tokenize"]


def compare_digests(canary: Mapping[str, str], stable: Mapping[str, str]) -> list[str]:
    """Return what is different about the models of two sides, a sentence for each."""
    differences = [f"{name}: the canary does not serve it" for name in sorted(stable.keys() - canary.keys())]
    differences += [f"{name}: only the canary serves it" for name in sorted(canary.keys() - stable.keys())]
    differences += [
        f"{name}: tokenizer or chat template differ (digest {canary[name][:12]} instead of {stable[name][:12]})"
        for name in sorted(canary.keys() & stable.keys())
        if canary[name] != stable[name]
    ]
    return differences


def client_post(client: ApiClient, path: str, body: dict[str, Any]) -> Reply:
    """Return the answer to a request.

    Raises:
        TrialError: there is none.
    """
    return _ask(lambda: client.post(path, body), path, is_any_status=True)


def _ask(ask: Callable[[], Reply], what: str, *, is_any_status: bool = False) -> Reply:
    try:
        reply = ask()
    except NoAnswerError as error:
        raise TrialError(f"{what}: no answer: {error}") from None
    if not is_any_status and reply.status != http.client.OK:
        raise TrialError(f"{what}: status {reply.status} {_message(reply.body)}")
    return reply


def _expect(reply: Reply, what: str, name: str) -> None:
    if reply.status != http.client.OK:
        raise TrialError(f"{what}, model {name}: status {reply.status} {_message(reply.body)}")


def _has_no_template(reply: Reply) -> bool:
    """Return whether a chat was refused because the model takes no messages, which is no fault."""
    error = reply.body.get("error") if isinstance(reply.body, dict) else None
    return (
        reply.status == http.client.BAD_REQUEST
        and isinstance(error, dict)
        and error.get("param") == "messages"
        and "chat template" in str(error.get("message"))
    )


def _check_plain(body: Any, what: str, name: str, part: str) -> None:
    try:
        choice = body["choices"][0]
        text = choice["text"] if part == "text" else choice["message"]["content"] or ""
        usage, reason = body["usage"], choice["finish_reason"]
        _check_end(reason, usage, what, name)
    except (KeyError, IndexError, TypeError) as error:
        raise TrialError(f"{what}, model {name}: malformed answer: {type(error).__name__}: {error}") from None
    if not isinstance(text, str):
        raise TrialError(f"{what}, model {name}: malformed answer: the text is no text")


def _check_stream(reply: Reply, what: str, name: str) -> None:
    if not reply.is_whole:
        failure = next((_message(event) for event in reply.events if isinstance(event, dict) and "error" in event), "")
        raise TrialError(f"{what}, model {name}: the stream ended without [DONE]. {failure}")
    try:
        reasons = [choice["finish_reason"] for event in reply.events for choice in event["choices"]]
        usage = next(event["usage"] for event in reversed(reply.events) if event.get("usage"))
        _check_end(next((reason for reason in reasons if reason), None), usage, what, name)
    except (KeyError, TypeError, StopIteration, AttributeError) as error:
        raise TrialError(f"{what}, model {name}: malformed events: {type(error).__name__}: {error}") from None


def _check_end(reason: Any, usage: Mapping[str, Any], what: str, name: str) -> None:
    count = usage["completion_tokens"]
    if reason not in _REASONS:
        raise TrialError(f"{what}, model {name}: finish_reason is {reason!r}")
    if not 0 < count <= _NUM_TOKENS or (reason == "length" and count != _NUM_TOKENS):
        raise TrialError(
            f"{what}, model {name}: {count} tokens with finish_reason {reason}, of {_NUM_TOKENS} asked for"
        )
    if usage["prompt_tokens"] < 1:
        raise TrialError(f"{what}, model {name}: the prompt has no tokens")


def _message(body: Any) -> str:
    error = body.get("error") if isinstance(body, dict) else None
    return str(error.get("message", "")) if isinstance(error, dict) else ""
