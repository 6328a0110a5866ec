"""The gateway before the real server: official clients, random requests, hang-ups, and what is left of a request."""

from __future__ import annotations

import http.client
import json
import random
import re
import time
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from tests.e2e.build import build
from tests.e2e.server import Server, serve, until
from tests.e2e.tool_checkpoint import make_tool_checkpoint
from tests.gateway.clients.environments import NEWEST, NODE, judge, node_program, read_outcomes, run_client, run_script
from tests.gateway.clients.gateways import RunningGateway, gateway, make_key
from tests.gateway.clients.relay import relaying
from tests.gateway.clients.scripts.cases import OTHER_TOOL, PERSON, TOOL
from trident_gateway.settings import ServerAddress

SEED = 20261129
NUM_RANDOM = 200
NUM_COMPARED = 100
CANARY = "kanarienvogel"
FINISH_REASONS = {"stop", "length", "tool_calls"}
MODEL = "small"


@dataclass(frozen=True)
class Stack:
    """The real server and a gateway before it."""

    server: Server
    gateway: RunningGateway
    folder: Path

    def post(self, path: str, body: dict[str, Any], key: str = "") -> tuple[int, bytes]:
        """Return the status and the whole answer."""
        connection = self.send(path, body, key)
        reply = connection.getresponse()
        answer = reply.status, reply.read()
        connection.close()
        return answer

    def send(self, path: str, body: dict[str, Any], key: str = "") -> http.client.HTTPConnection:
        """Send a request, and leave its answer to be read."""
        connection = http.client.HTTPConnection("127.0.0.1", self.gateway.port, timeout=60)
        headers = {"Authorization": f"Bearer {key or self.gateway.key}", "Content-Type": "application/json"}
        connection.request("POST", path, json.dumps({"model": MODEL, **body}), headers)
        return connection

    def knows(self, key: str) -> bool:
        """Whether the gateway takes a key."""
        connection = http.client.HTTPConnection("127.0.0.1", self.gateway.port, timeout=60)
        connection.request("GET", "/v1/models", headers={"Authorization": f"Bearer {key}"})
        status = connection.getresponse().status
        connection.close()
        return status == 200

    def is_quiet(self) -> bool:
        """Whether neither runs anything, and no block is held."""
        return (
            self.server.num_active == self.server.num_used_blocks == 0
            and self.gateway.metric("trident_gateway_inflight") == 0
        )


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A model whose template has tools, behind a gateway with keys."""
    folder = tmp_path_factory.mktemp("openai")
    checkpoint = make_tool_checkpoint(folder / MODEL)
    repository = build(checkpoint, folder / "repository", "--max-num-seqs", "64", "--kv-cache", "32768t")
    with serve(repository, folder / "server.log") as server:
        address = ServerAddress(f"http://{server.http}", f"http://{server.host}:{server.metrics_port}")
        with gateway(folder / "gateway", [address]) as running:
            yield Stack(server, running, folder)


@pytest.mark.parametrize("client", ["python", "node"])
def test_openai_clients_official(stack: Stack, client: str) -> None:
    with relaying(stack.gateway.port) as relay:
        arguments = (relay.url, stack.gateway.key, stack.gateway.spent_key, MODEL)
        if client == "python":
            outcomes = run_script(NEWEST, "openai_python", *arguments)
        else:
            outcomes = read_outcomes(run_client([node_program(), NODE / "openai_node.mjs", *arguments]))
        exchanges = relay.take()
    problems = judge([exchange.as_json() for exchange in exchanges])
    assert len(exchanges) >= len(outcomes)
    assert [problem for listed in problems for problem in listed] == []
    failed = {name: told for name, told in outcomes.items() if isinstance(told, dict) and "traceback" in told}
    assert failed == {}
    if client == "python":
        _check_conversations(outcomes)
    else:
        jsonschema.validate(outcomes["json_schema"], PERSON)
        jsonschema.validate(outcomes["tools"]["arguments"], TOOL["function"]["parameters"])
        assert outcomes["plain"]["text"] == outcomes["streamed"]["text"]


def _check_conversations(outcomes: dict[str, Any]) -> None:
    """Check what holds whatever the model says."""
    plain, streamed, counted = outcomes["plain"], outcomes["streamed"], outcomes["streamed_usage"]
    assert plain["text"] == list(streamed["text"].values()) == list(counted["text"].values())
    assert plain["usage"] == counted["usage"]
    assert plain["usage"]["completion_tokens"] == len(outcomes["logprobs"]["logprobs"])
    scored = b"".join(bytes(entry["bytes"]) for entry in outcomes["logprobs"]["logprobs"])
    assert scored.decode().removesuffix("<|end|>") == outcomes["logprobs"]["text"][0]
    jsonschema.validate(json.loads(outcomes["json_schema"]["text"][0]), PERSON)
    assert outcomes["stop"]["word"] not in outcomes["stop"]["text"][0]
    schemas = {tool["function"]["name"]: tool["function"]["parameters"] for tool in (TOOL, OTHER_TOOL)}
    for case, reason in (("tools_required", "tool_calls"), ("tools_named", "stop")):
        (call,) = outcomes[case]["calls"][0]
        assert outcomes[case]["finish"] == [reason]
        jsonschema.validate(json.loads(call["arguments"]), schemas[call["name"]])
    assert json.loads(outcomes["responses_tools_streamed"]["done"][0])["days"] >= 1


def test_openai_clients_random_answers_are_alike_streamed_and_whole(stack: Stack) -> None:
    """The joined deltas equal the plain answer, of one request at a time: what is sampled depends on the batch."""
    chance = random.Random(SEED)  # noqa: S311
    for _ in range(NUM_COMPARED):
        path, asked = _random_body(chance)
        (status, answer), (streamed_status, stream) = (
            stack.post(path, body) for body in (asked, {**asked, **_STREAMING})
        )
        assert (status, streamed_status) == (200, 200), (asked, answer, stream)
        plain, joined = _read_plain(json.loads(answer)), _read_stream(stream)
        scores, joined_scores = plain.pop("logprobs"), joined.pop("logprobs")
        assert joined == plain, asked
        assert _are_close(joined_scores, scores), asked


def test_openai_clients_random_answers_at_the_same_time_are_counted(stack: Stack) -> None:
    """Each is whole, and the usage of all equals what the engine has counted."""
    chance = random.Random(SEED + 1)  # noqa: S311
    bodies = [_random_body(chance) for _ in range(NUM_RANDOM)]
    asked = [(path, {**body, **chance.choice([{}, _STREAMING])}) for path, body in bodies]
    until(stack.is_quiet, 60, "nothing runs")
    before = _counted(stack.server)
    with ThreadPoolExecutor(24) as pool:
        answers = list(pool.map(lambda body: stack.post(*body), asked))
    usage = {"prompt_tokens": 0, "completion_tokens": 0}
    for (_, body), (status, answer) in zip(asked, answers, strict=True):
        assert status == 200, (body, answer)
        told = _read_stream(answer) if "stream" in body else _read_plain(json.loads(answer))
        assert set(told["finish"]) == set(range(body.get("n", 1))), body
        assert set(told["finish"].values()) <= FINISH_REASONS
        # The engine counts a prompt once for each of its answers, a client's usage once.
        usage["prompt_tokens"] += told["usage"]["prompt_tokens"] * len(told["texts"])
        usage["completion_tokens"] += told["usage"]["completion_tokens"]
    until(lambda: _counted(stack.server)[1] - before[1] >= usage["completion_tokens"], 60, "the counters are up")
    after = _counted(stack.server)
    assert (after[0] - before[0], after[1] - before[1]) == (usage["prompt_tokens"], usage["completion_tokens"])
    until(stack.is_quiet, 60, "nothing is left")


_STREAMING = {"stream": True, "stream_options": {"include_usage": True}}
_WORDS = [
    "What",
    "does",
    "os.path.join",
    "return?",
    "naïve",
    "🚢",
    "σύντομα",
    "{}",
    '"',
    "\\",
    "the",
    "fractions",
    "module",
]


def _random_body(chance: random.Random) -> tuple[str, dict[str, Any]]:
    """Return a path and what is asked there."""
    text = " ".join(chance.choices(_WORDS, k=chance.randint(1, 12)))
    body: dict[str, Any] = {"seed": chance.randrange(1 << 31), "temperature": chance.choice([0, 0.7, 1.5])}
    if chance.random() < 0.5:
        body["n"] = chance.randint(1, 3)
    if chance.random() < 0.3:
        body["stop"] = chance.sample(["e", " the", ".", "module"], 2)
    if chance.random() < 0.4:
        body |= {"max_tokens": chance.randint(1, 24), "prompt": text}
        if chance.random() < 0.5:
            body["logprobs"] = chance.randint(0, 5)
        return "/v1/completions", body
    body |= {"max_completion_tokens": chance.randint(1, 24), "messages": [{"role": "user", "content": text}]}
    kind = chance.random()
    if kind < 0.3:
        choice = chance.choice(["auto", "required", {"type": "function", "function": {"name": "get_weather"}}])
        body |= {"tools": [TOOL, OTHER_TOOL], "tool_choice": choice, "max_completion_tokens": chance.randint(1, 90)}
    elif kind < 0.5:
        body["response_format"] = {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON}}
    if chance.random() < 0.5:
        body |= {"logprobs": True, "top_logprobs": chance.randint(0, 5)}
    return "/v1/chat/completions", body


def _read_plain(answer: dict[str, Any]) -> dict[str, Any]:
    """Return what an answer says, in the form of `_read_stream`."""
    found = _empty()
    for choice in answer["choices"]:
        message = choice.get("message") or {"content": choice["text"]}
        _put(found, choice["index"], message, choice["logprobs"])
        found["finish"][choice["index"]] = choice["finish_reason"]
    return {**found, "usage": _without_cache(answer["usage"])}


def _read_stream(body: bytes) -> dict[str, Any]:
    """Return what a stream says when it is joined."""
    events = [line.removeprefix("data: ") for line in body.decode().split("\n\n") if line.startswith("data: ")]
    assert events[-1] == "[DONE]"
    found = _empty()
    chunks = [json.loads(event) for event in events[:-1]]
    for chunk in chunks:
        assert "error" not in chunk, chunk
        for choice in chunk["choices"]:
            _put(found, choice["index"], choice.get("delta") or {"content": choice.get("text")}, choice.get("logprobs"))
            if choice["finish_reason"]:
                assert choice["index"] not in found["finish"]
                found["finish"][choice["index"]] = choice["finish_reason"]
    return {**found, "usage": _without_cache(chunks[-1]["usage"])}


def _empty() -> dict[str, Any]:
    return {"texts": {}, "calls": {}, "logprobs": {}, "finish": {}}


def _put(found: dict[str, Any], index: int, message: dict[str, Any], logprobs: dict[str, Any] | None) -> None:
    found["texts"][index] = found["texts"].get(index, "") + (message.get("content") or "")
    calls = found["calls"].setdefault(index, {})
    for at, call in enumerate(message.get("tool_calls") or []):
        name, arguments = calls.get(call.get("index", at), ("", ""))
        function = call["function"]
        calls[call.get("index", at)] = (name + function.get("name", ""), arguments + function["arguments"])
    scores = found["logprobs"].setdefault(index, [])
    for name, values in sorted((logprobs or {}).items()):
        if values is not None:
            scores += [[name, value] for value in values]
    scores.sort(key=lambda score: score[0])


def _are_close(one: Any, other: Any) -> bool:
    """Whether two values are equal but for the last digits of numbers, which depend on what else is in the batch."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_are_close(one[name], other[name]) for name in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_are_close, one, other))
    if isinstance(one, float) and isinstance(other, float):
        return abs(one - other) < 1e-3
    return bool(one == other)


def _without_cache(usage: dict[str, Any]) -> dict[str, Any]:
    """Return a usage without what the prefix cache had, which the second of two equal prompts finds fuller."""
    return {name: usage[name] for name in ("prompt_tokens", "completion_tokens", "total_tokens")}


def _counted(server: Server) -> tuple[int, int]:
    """Return the tokens of prompts and of outputs that the engine has counted."""
    return int(server.metric("nv_llm_input_tokens_total")), int(server.metric("nv_llm_output_tokens_total"))


ENDLESS: dict[str, Any] = {
    "messages": [{"role": "user", "content": "hello"}], "max_completion_tokens": 900, "ignore_eos": True,
}  # fmt: skip


@pytest.mark.parametrize("stream", [True, False])
def test_openai_clients_who_leave_stop_costing_steps(stack: Stack, stream: bool) -> None:
    """The engine makes far fewer tokens than they had asked for, whether something had come by then or not."""
    until(stack.is_quiet, 60, "nothing runs")
    before, (_, tokens_before) = _cancelled(stack.server), _counted(stack.server)
    connection = stack.send("/v1/chat/completions", {**ENDLESS, "stream": stream})
    if stream:
        assert connection.getresponse().readline().startswith(b"data:")
    else:
        until(lambda: stack.server.num_active > 0, 60, "the request runs")
    connection.sock.close() if connection.sock else None
    connection.close()
    until(lambda: _cancelled(stack.server) == before + 1, 60, "the engine has cancelled it")
    until(stack.is_quiet, 60, "nothing is left")
    assert _counted(stack.server)[1] - tokens_before < ENDLESS["max_completion_tokens"]


def test_openai_clients_fifty_who_leave_one_after_another(stack: Stack) -> None:
    """A key for one request at a time can be used again at once: each has given its place back."""
    key = make_key(stack.folder / "gateway" / "keys.json", "carol", "--concurrency", "4")
    until(lambda: stack.knows(key), 60, "the gateway has read the file again")
    chance = random.Random(SEED)  # noqa: S311

    def leave(_: int) -> None:
        connection = stack.send("/v1/chat/completions", {**ENDLESS, "stream": chance.random() < 0.7}, key)
        time.sleep(chance.choice([0, 0.01, 0.1, 0.3]))
        if connection.sock:
            connection.sock.close()
        connection.close()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(leave, range(50)))
    until(stack.is_quiet, 60, "nothing is left")
    asked = {"messages": ENDLESS["messages"], "max_completion_tokens": 2}
    with ThreadPoolExecutor(4) as pool:
        statuses = [
            status for status, _ in pool.map(lambda _: stack.post("/v1/chat/completions", asked, key), range(4))
        ]
    assert statuses == [200] * 4


def _cancelled(server: Server) -> int:
    return int(server.metric("nv_llm_requests_total", finish_reason="cancelled"))


def test_openai_clients_nothing_that_was_said_is_left_anywhere(stack: Stack) -> None:
    """The server logs at its most talkative; what is looked for stands in prompts, tools, arguments and the key."""
    tool: dict[str, Any] = {
        "type": "function",
        "function": {"name": CANARY, "description": CANARY, "parameters": {"title": CANARY}},
    }
    asked = {"messages": [{"role": "user", "content": CANARY}], "max_completion_tokens": 8, "user": CANARY}
    bodies: Sequence[tuple[str, dict[str, Any]]] = [
        ("/v1/chat/completions", {**asked, "tools": [tool], "tool_choice": "required"}),
        ("/v1/chat/completions", {**asked, "tools": [tool], "stream": True, "stop": [CANARY]}),
        ("/v1/chat/completions", {**asked, "response_format": {"type": CANARY}}),
        ("/v1/chat/completions", {**asked, "temperature": CANARY}),
        ("/v1/chat/completions", {**asked, CANARY: 1}),
        ("/v1/completions", {"prompt": CANARY, "echo": True, "max_tokens": 2, "guided_regex": f"{CANARY}("}),
        ("/v1/responses", {"input": CANARY, "instructions": CANARY, "max_output_tokens": 4}),
    ]
    statuses = [stack.post(path, body)[0] for path, body in bodies]
    assert statuses[:2] == [200, 200]
    assert stack.post("/v1/chat/completions", asked, f"sk-{CANARY}")[0] == 401
    with urllib.request.urlopen(f"http://127.0.0.1:{stack.server.metrics_port}/metrics", timeout=60) as reply:
        pages = {"server's metrics": reply.read().decode(), "gateway's metrics": stack.gateway.metrics()}
    written = [path for path in stack.folder.rglob("*") if _may_be_written(path)]
    assert {stack.gateway.log, stack.gateway.output, stack.server.log} <= set(written)
    logs = {str(path): path.read_text(errors="replace") for path in written}
    for where, text in {**pages, **logs}.items():
        assert CANARY not in text.lower(), where
        assert stack.gateway.key not in text, where
    lines = [json.loads(line) for line in stack.gateway.log.read_text(encoding="utf-8").splitlines()]
    assert len(lines) >= len(bodies)
    assert not re.search(r"sk-trident-\w+-\w{20}", stack.gateway.log.read_text(encoding="utf-8"))


def _may_be_written(path: Path) -> bool:
    """Whether a running stack may have written a file; the model's own are older."""
    return path.is_file() and "repository" not in path.parts and MODEL not in path.parts
