"""Ten thousand mutated bodies: each is answered or refused, none is a fault, and nothing strange reaches a server."""

from __future__ import annotations

import asyncio
import copy
import json
import random
from typing import Any

import pytest

from tests.fakes.gateway_upstream import FakeRouter, Script, SpokenAnswer, tokens_of
from tests.fakes.triton_http import FakeTriton
from tests.gateway.api.client import ApiClient, Authenticator, Limiter
from tests.gateway.api.models import TOOL_CARD, TOOL_MODEL
from tests.gateway.http.room import JSON, Room
from tests.gateway.upstream.driver import routing
from trident_ensemble.contract import tensors
from trident_gateway.api.context import ApiContext
from trident_gateway.api.openai_api import endpoints
from trident_gateway.callers import ANYBODY
from trident_gateway.settings import GatewaySettings
from trident_gateway.upstream.served_model import GenerateCall

_NUM_BODIES = 10_000
_SPECS = {
    spec.name: spec
    for spec in (*tensors.ENSEMBLE_INPUTS, tensors.PROMPT_TOKEN_IDS, tensors.MARKER_IDS, tensors.RETURN_TOKEN_BYTES)
}
_TYPES: dict[str, tuple[type, ...]] = {
    "STRING": (str,), "BOOL": (bool,), "INT32": (int,), "INT64": (int,), "UINT64": (int,), "FP32": (int, float),
}  # fmt: skip
_BOUNDS = {"INT32": (-(2**31), 2**31), "UINT64": (0, 2**64)}

_TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "add", "description": "adds", "strict": True,
        "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
    },
}  # fmt: skip
_CALL = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
_CHAT = {
    "model": "demo",
    "messages": [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "hí 😀"}], "name": "ann"},
        {"role": "assistant", "content": None, "tool_calls": [_CALL]},
        {"role": "tool", "content": "2", "tool_call_id": "c1"},
        {"role": "user", "content": "and now?"},
    ],
}
_BODIES: list[tuple[str, dict[str, Any]]] = [
    ("/v1/chat/completions", {
        **_CHAT, "temperature": 0.5, "top_p": 0.9, "n": 1, "stop": ["x"], "seed": 1, "logprobs": True,
        "top_logprobs": 2, "logit_bias": {"5": 1}, "max_completion_tokens": 5, "user": "u", "metadata": {"a": "b"},
        "stream": True, "stream_options": {"include_usage": True}, "presence_penalty": 1, "top_k": 3,
        "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object"}}},
        "chat_template_kwargs": {"enable_thinking": False}, "timeout": 3, "priority": 1, "stop_token_ids": [4],
        "bad_words": ["y"],
    }),
    ("/v1/chat/completions", {**_CHAT, "tools": [_TOOL], "tool_choice": "auto", "parallel_tool_calls": False}),
    ("/v1/chat/completions", {
        **_CHAT, "tools": [_TOOL], "tool_choice": {"type": "function", "function": {"name": "add"}}, "stream": True,
    }),
    ("/v1/completions", {"model": "demo", "prompt": ["a", "b"], "echo": True, "logprobs": 2, "max_tokens": 3}),
    ("/v1/completions", {"model": "demo", "prompt": [[1, 2], [3]], "stream": True, "best_of": 1, "guided_regex": "a+"}),
    ("/v1/responses", {
        "model": "demo", "instructions": "be brief", "max_output_tokens": 5, "store": False, "stream": True,
        "input": [
            {"role": "user", "content": [{"type": "input_text", "text": "hi"}]},
            {"type": "function_call", "call_id": "c", "name": "add", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c", "output": "2"},
        ],
        "tools": [{"type": "function", **_TOOL["function"]}], "tool_choice": "required",
    }),
    ("/v1/responses", {"model": "demo", "input": "hi", "text": {"format": {"type": "json_object"}}, "metadata": {}}),
    ("/tokenize", {"model": "demo", "messages": _CHAT["messages"], "add_generation_prompt": True}),
    ("/tokenize", {"model": "demo", "prompt": "hi", "add_special_tokens": True}),
    ("/detokenize", {"model": "demo", "tokens": [1, 2, 3]}),
]  # fmt: skip
_STRANGE: list[Any] = [
    None, True, False, 0, -1, 1, 3, 2**31, 2**63, -(2**63), 10**30, 0.5, -0.0, 1e308, 1e-320, "", "x", "\0", "\u2028",
    "a" * 5000, "NaN", [], [[]], [None], {}, {"": None}, {"type": "text"}, {"a": {"b": [1, {}]}}, ["x", 1], [1] * 300,
    "auto", "none", "required", "assistant", "function", {"$ref": "#"}, {"type": "object"}, [{"role": "user"}], "😀",
]  # fmt: skip
_BYTES = [
    b"\x00", b"\xff", b'"', b"{", b"}", b"[", b"]", b",", b":", b"\\u", b"\\ud800", b"NaN", b"1e999", b"-", b"9" * 400,
]  # fmt: skip


def _mutated(draw: random.Random, body: Any) -> bytes:
    """Return a body with some of its values, names or bytes changed."""
    tree = copy.deepcopy(body)
    for _ in range(draw.choice([1, 1, 1, 2, 4])):
        _change(draw, tree)
    raw = json.dumps(tree, ensure_ascii=draw.random() < 0.5).encode(errors="surrogatepass")
    if draw.random() < 0.3:
        at = draw.randrange(len(raw) + 1)
        raw = draw.choice([raw[:at], raw[:at] + draw.choice(_BYTES) + raw[at:], raw[:at] + raw[at + 1 :]])
    return raw


def _change(draw: random.Random, tree: Any) -> None:
    """Change one value somewhere in a tree."""
    places: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        pairs = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
        for key, value in pairs:
            places.append((node, key))
            walk(value)

    walk(tree)
    if not places:
        return
    node, key = draw.choice(places)
    action = draw.randrange(5)
    if action == 0:
        del node[key]
    elif action == 1 and isinstance(node, dict):
        node[draw.choice(["x", "type", "role", "name", "content", "index", "stream", "n", "functions", ""])] = node[key]
    elif action == 2 and isinstance(node, list):
        node.append(copy.deepcopy(draw.choice(node)))
    else:
        node[key] = copy.deepcopy(draw.choice(_STRANGE))


def _check_call(call: GenerateCall) -> None:
    """Check that a call has tensors of the ensemble, each of its type and within its bounds."""
    for name, value in json.loads(call.body).items():
        spec = _SPECS[name]
        for element in value if isinstance(value, list) else [value]:
            assert isinstance(element, _TYPES[spec.dtype]), (name, element)
            assert spec.dtype == "BOOL" or not isinstance(element, bool), (name, element)
            least, bound = _BOUNDS.get(spec.dtype, (0, 0))
            assert spec.dtype not in _BOUNDS or least <= int(str(element)) < bound, (name, element)
        assert value != [], name
        assert isinstance(value, list) == (spec.dims == (-1,)), name


@pytest.mark.slow
@pytest.mark.parametrize("allow", [False, True])
def test_no_body_is_a_fault(allow: bool) -> None:
    """Every body gets 200, or 4xx in the form of the API."""
    draw = random.Random(20)  # noqa: S311 (no secret)
    num_answered = num_refused = 0

    def say(call: GenerateCall) -> Script:
        _check_call(call)
        num = json.loads(call.body).get("num_return_sequences", 1)
        return Script([SpokenAnswer(tokens_of("Hello"))] * num)

    async def run() -> None:
        nonlocal num_answered, num_refused
        router = FakeRouter(say, served=(TOOL_MODEL,), json_answers=lambda _name, _body: b'{"input_ids": [1, 2]}')
        client = ApiClient(say, router=router, settings=GatewaySettings(allow_unknown_fields=allow, max_n=4))
        for _ in range(_NUM_BODIES // 2):
            path, body = draw.choice(_BODIES)
            raw = _mutated(draw, body)
            answer = await client.call("POST", path, raw)
            router.calls.clear()
            router.exchanges.clear()
            client.limiter.reservations.clear()
            if answer.status == 200:
                num_answered += 1
                assert b"server_error" not in answer.body, raw
            else:
                num_refused += 1
                assert 400 <= answer.status < 500, (raw, answer.body)
                assert answer.json["error"]["message"], raw

    asyncio.run(run())
    assert num_answered > _NUM_BODIES // 20
    assert num_refused > _NUM_BODIES // 20


@pytest.mark.slow
def test_no_body_is_a_fault_on_the_whole_way() -> None:
    """Some of them over HTTP, from a client's connection to a server's and back."""
    draw = random.Random(21)  # noqa: S311 (no secret)

    async def run() -> None:
        async with routing(FakeTriton(TOOL_CARD)) as router:
            callers: Any = Authenticator({None: ANYBODY})
            limiter: Any = Limiter()
            context = ApiContext(GatewaySettings(max_n=4), router, callers, limiter)
            async with Room(*endpoints(context)) as room:
                for _ in range(300):
                    path, body = draw.choice(_BODIES)
                    raw = _mutated(draw, body)
                    reply = await room.ask("POST", path, raw, JSON)
                    assert reply.status < 500, (raw, reply.body)

    asyncio.run(asyncio.wait_for(run(), 300))
