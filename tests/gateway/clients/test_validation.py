"""The judge of all other tests of this folder: it takes what OpenAI sends, and finds whatever is changed in it."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.gateway.clients.environments import NEWEST, PINNED, judge

pytestmark = pytest.mark.slow

USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5, "prompt_tokens_details": {"cached_tokens": 0}}
SCORE = {"token": "a", "logprob": -0.5, "bytes": [97], "top_logprobs": [{"token": "a", "logprob": -0.5, "bytes": [97]}]}
CALL = {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": "{}"}}
CHAT = {
    "id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "demo", "usage": USAGE,
    "choices": [{
        "index": 0, "finish_reason": "stop", "logprobs": {"content": [SCORE], "refusal": None},
        "message": {"role": "assistant", "content": "a", "refusal": None, "tool_calls": [CALL]},
    }],
}  # fmt: skip
CHUNK_HEAD = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "demo"}
CHUNK = {
    **CHUNK_HEAD, "usage": None,
    "choices": [{
        "index": 0, "finish_reason": None, "logprobs": {"content": [SCORE], "refusal": None},
        "delta": {"role": "assistant", "content": "", "tool_calls": [{"index": 0, **CALL}]},
    }],
}  # fmt: skip
LAST_CHUNK = {**CHUNK_HEAD, "choices": [], "usage": USAGE}
COMPLETION = {
    "id": "cmpl-1", "object": "text_completion", "created": 1, "model": "demo", "usage": USAGE,
    "choices": [{
        "index": 0, "text": "a", "finish_reason": "length",
        "logprobs": {"tokens": ["a"], "token_logprobs": [None], "top_logprobs": [None], "text_offset": [0]},
    }],
}  # fmt: skip
MODEL = {"id": "demo", "object": "model", "created": 1, "owned_by": "trident"}
TEXT_PART = {"type": "output_text", "text": "a", "annotations": [], "logprobs": []}
RESPONSE = {
    "id": "resp_1", "object": "response", "created_at": 1, "status": "completed", "error": None,
    "incomplete_details": None, "instructions": None, "metadata": {}, "model": "demo", "parallel_tool_calls": True,
    "temperature": 1.0, "tool_choice": "auto", "tools": [], "top_p": 1.0,
    "output": [
        {"id": "msg_1", "type": "message", "role": "assistant", "status": "completed", "content": [TEXT_PART]},
        {"id": "fc_1", "type": "function_call", "call_id": "call_1", "name": "f", "arguments": "{}",
         "status": "completed"},
    ],
}  # fmt: skip
ERROR = {"error": {"message": "No.", "type": "invalid_request_error", "param": None, "code": None}}
DELTA_EVENT = {
    "type": "response.output_text.delta", "item_id": "msg_1", "output_index": 0, "content_index": 0, "delta": "a",
    "logprobs": [], "sequence_number": 0,
}  # fmt: skip
END_EVENT = {"type": "response.completed", "response": RESPONSE, "sequence_number": 1}

PATHS = {"chat": "/v1/chat/completions", "completions": "/v1/completions", "responses": "/v1/responses"}
#: What must be in each answer.
REQUIRED = {
    "id", "object", "created", "model", "choices", "index", "message", "finish_reason", "role", "prompt_tokens",
    "completion_tokens", "total_tokens", "token", "logprob", "top_logprobs", "function", "name", "arguments", "text",
    "data", "owned_by", "created_at", "output", "parallel_tool_calls", "tool_choice", "tools", "call_id", "annotations",
    "content_index", "delta", "item_id", "output_index", "sequence_number", "response", "param", "code", "type",
}  # fmt: skip


def exchange(body: str, path: str, *, status: int = 200, method: str = "POST", **request: Any) -> dict[str, Any]:
    """Return an exchange as the relay records it."""
    kind = "text/event-stream; charset=utf-8" if body.startswith(("data", "event")) else "application/json"
    return {
        "method": method, "path": path, "request": request, "status": status, "content_type": kind, "body": body,
        "is_complete": True,
    }  # fmt: skip


def chat_stream(*chunks: object) -> str:
    """Return a stream of chunks with its end."""
    return "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + "data: [DONE]\n\n"


def response_stream(*events: dict[str, Any]) -> str:
    """Return a stream of named events."""
    return "".join(f"event: {event.get('type')}\ndata: {json.dumps(event)}\n\n" for event in events)


WITH_USAGE: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}}


def exchange_of(kind: str, value: Any) -> dict[str, Any]:
    """Return the exchange whose answer is this value."""
    if kind == "model page":
        return exchange(json.dumps({"object": "list", "data": [value]}), "/v1/models", method="GET")
    if kind == "error":
        return exchange(json.dumps(value), PATHS["chat"], status=400)
    if kind == "chunk":
        return exchange(chat_stream(value, LAST_CHUNK), PATHS["chat"], **WITH_USAGE)
    if kind == "error event":
        return exchange(f"data: {json.dumps(CHUNK)}\n\ndata: {json.dumps(value)}\n\n", PATHS["chat"], stream=True)
    if kind == "event":
        return exchange(response_stream(value, END_EVENT), PATHS["responses"], stream=True)
    return exchange(json.dumps(value), PATHS[kind])


RIGHT: dict[str, Any] = {
    "chat": CHAT, "completions": COMPLETION, "responses": RESPONSE, "model page": MODEL, "error": ERROR, "chunk": CHUNK,
    "event": DELTA_EVENT,
}  # fmt: skip


def mutants(value: Any, root: Any, where: tuple[Any, ...] = ()) -> Iterator[tuple[str, Any]]:
    """Yield copies of `root` with one field more or one required field less, at each place below `value`."""
    if isinstance(value, list):
        for index, item in enumerate(value):
            yield from mutants(item, root, (*where, index))
    elif isinstance(value, dict):
        if where[-1:] != ("metadata",) and where[-2:-1] != ("top_logprobs",):
            yield f"{where} invented", _changed(root, where, lambda node: node.update(invented=1))
        for name, item in value.items():
            if name in REQUIRED and not _is_optional(where, name):
                yield f"{where} without {name}", _changed(root, where, lambda node, name=name: node.pop(name))
                if item is not None:
                    yield (
                        f"{where} {name} wrong",
                        _changed(root, where, lambda node, name=name: node.update({name: {"x": 1}})),
                    )
            yield from mutants(item, root, (*where, name))


def _is_optional(where: tuple[Any, ...], name: str) -> bool:
    """Whether a chunk's delta, or a place where another type has that name, may go without."""
    return "delta" in where[-1:] or ("delta" in where and name != "index") or (where[-1:] == ("logprobs",))


def _changed(root: Any, where: tuple[Any, ...], change: Any) -> Any:
    changed = copy.deepcopy(root)
    node = changed
    for step in where:
        node = node[step]
    change(node)
    return changed


@pytest.mark.parametrize("environment", [NEWEST, PINNED])
def test_validation_takes_what_is_right(environment: str) -> None:
    right = [exchange_of(kind, value) for kind, value in RIGHT.items()]
    stopped = chat_stream({**CHUNK_HEAD, "choices": CHUNK["choices"]})
    right.append(exchange(stopped, PATHS["chat"], stream=True))
    assert judge(right, environment) == [[] for _ in right]


def test_validation_finds_each_field_that_is_missing_invented_or_wrong() -> None:
    named = [
        (f"{kind} {name}", kind, mutant) for kind, value in RIGHT.items() for name, mutant in mutants(value, value)
    ]
    found = judge([exchange_of(kind, mutant) for _, kind, mutant in named])
    assert len(named) > 120
    overlooked = {name for (name, *_), problems in zip(named, found, strict=True) if not problems}
    assert overlooked == {"responses ('output', 1) without id", "chunk ('choices', 0) without finish_reason"}, (
        "optional"
    )


def test_validation_finds_streams_that_are_out_of_order() -> None:
    plain = {**CHUNK_HEAD, "choices": CHUNK["choices"]}
    wrong = {
        "no end": exchange(f"data: {json.dumps(plain)}\n\n", PATHS["chat"], stream=True),
        "two ends": exchange(chat_stream(plain) + "data: [DONE]\n\n", PATHS["chat"], stream=True),
        "another id": exchange(chat_stream(plain, {**plain, "id": "chatcmpl-2"}), PATHS["chat"], stream=True),
        "no usage": exchange(chat_stream({**CHUNK}), PATHS["chat"], **WITH_USAGE),
        "usage that nobody asked for": exchange(chat_stream(plain, LAST_CHUNK), PATHS["chat"], stream=True),
        "a gap": exchange(
            response_stream(DELTA_EVENT, {**END_EVENT, "sequence_number": 2}), PATHS["responses"], stream=True
        ),
        "another name": exchange(
            response_stream(DELTA_EVENT, END_EVENT).replace("event: response.completed", "event: x"),
            PATHS["responses"],
            stream=True,
        ),
        "not the end": exchange(response_stream(DELTA_EVENT), PATHS["responses"], stream=True),
        "html": {**exchange("<html>", PATHS["chat"], status=502), "content_type": "text/html"},
    }
    found = judge(list(wrong.values()))
    assert [name for name, problems in zip(wrong, found, strict=True) if not problems] == []
