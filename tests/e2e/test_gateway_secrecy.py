"""Canary texts in everything that clients, models and operators may write, looked for in everything that is kept.

The gateway runs with every logger at its most talkative and asyncio in debug mode, in front of a server that quotes
what it was asked, fails, and dies in the middle of answers.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.collector import Collector
from tests.fakes.triton_http import FakeTriton, Script, refusal, tokens
from tests.gateway.http.room import Reply, run, until
from tests.gateway.process import JSON, GatewayProcess
from trident_ensemble.contract.model_card import Marker, ModelCard, ToolFormat
from trident_tools.main import main

CANARY = "kanarienvogel"
CARD = ModelCard(
    "demo", 1_700_000_000, 4096, "d0", takes_messages=True, takes_tools=True, tool_format=ToolFormat.HERMES,
    tool_markers={"start": Marker("<tool_call>", 7), "end": Marker("</tool_call>", 8)},
)  # fmt: skip
#: What the server does, by the seed of the request.
FAULTS: dict[int, Script] = {
    1: refusal(f"[INVALID_ARG] temperature: must not be {CANARY}"),
    2: refusal(f"[INTERNAL] {CANARY} in /models/{CANARY}/1/model.py"),
    3: Script([{"error": f"[INTERNAL] {CANARY}"}], status=200),
    4: Script([{"text_output": CANARY, "output_ids": "no number", "sequence_index": CANARY}]),
    5: Script([{"text_output": CANARY}, {"error": f"[INTERNAL] {CANARY}"}]),
    6: Script([{"text_output": CANARY, "output_ids": 1}, {"text_output": CANARY, "output_ids": 2}], break_after=1),
    7: Script([{"text_output": CANARY, "output_ids": 1}], hang_after=1),
}


def answer(request: dict[str, Any]) -> Script:
    """Answer with canaries, as the seed says."""
    if request.get("seed") in FAULTS:
        return FAULTS[request["seed"]]
    script = tokens(request)
    script.events = [{**event, "text_output": f"{event['text_output']} {CANARY}"} for event in script.events]
    return script


def bodies() -> list[tuple[str, dict[str, Any] | bytes]]:
    """Return paths and bodies that have canaries wherever there is room for one."""
    plain = {"model": "demo", "prompt": CANARY, "max_tokens": 3, "stop": [CANARY], "user": CANARY}
    tool = {
        "type": "function",
        "function": {"name": CANARY, "description": CANARY, "parameters": {"type": "object", "title": CANARY}},
    }
    chat = {"model": "demo", "messages": [{"role": "user", "content": CANARY}], "tools": [tool], "max_tokens": 3}
    valid: list[tuple[str, dict[str, Any]]] = [
        ("/v1/completions", plain),
        ("/v1/chat/completions", chat),
        ("/v1/responses", {"model": "demo", "input": CANARY, "instructions": CANARY}),
        ("/tokenize", {"model": "demo", "prompt": CANARY}),
    ]
    wrong: list[tuple[str, dict[str, Any] | bytes]] = [
        ("/v1/completions", {**plain, "temperature": CANARY}),
        ("/v1/completions", {**plain, CANARY: 1}),
        ("/v1/completions", {**plain, "model": CANARY}),
        ("/v1/completions", {**plain, "logit_bias": {CANARY: 1}}),
        ("/v1/completions", f'{{"model": "{CANARY}'.encode()),
        ("/v1/completions", f'"{CANARY}" \ud800'.encode(errors="surrogatepass")),
        ("/v1/chat/completions", {**chat, "response_format": {"type": CANARY}}),
        ("/v1/chat/completions", {**chat, "tool_choice": CANARY}),
        (f"/v1/{CANARY}", plain),
        (f"/v1/completions?key={CANARY}", plain),
        (f"/v1/models/{CANARY}", {}),
    ]
    faults = [("/v1/completions", {**plain, "seed": seed}) for seed in FAULTS if seed != 7]
    every = [*valid, *wrong, *faults]
    return every + [(path, {**body, "stream": True}) for path, body in every if isinstance(body, dict)]


async def ask(gateway: GatewayProcess, path: str, body: dict[str, Any] | bytes, headers: dict[str, str]) -> Reply:
    client = await gateway.connect()
    client.send("POST", path, body if isinstance(body, bytes) else json.dumps(body).encode(), {**JSON, **headers})
    try:
        return await client.reply()
    finally:
        client.close()


def test_secrets_of_clients_and_models_are_kept_nowhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keys, log, scratch = tmp_path / CANARY / "keys.json", tmp_path / CANARY / "log", tmp_path / "scratch"
    keys.parent.mkdir()
    scratch.mkdir()
    talkative = tmp_path / "site" / "sitecustomize.py"
    talkative.parent.mkdir()
    talkative.write_text("import logging\nlogging.basicConfig(level=1)\n")
    assert main(["keys", "create", "--keys", str(keys), "--tenant", "t", "--note", CANARY]) == 0
    key = next(word for word in capsys.readouterr().out.split() if word.startswith("sk-trident-"))
    secret = key[-43:]

    async def test() -> None:
        environment = {
            "TMPDIR": str(scratch), "PYTHONASYNCIODEBUG": "1", "PYTHONPATH": f"{talkative.parent}:.", "TERM": "dumb",
        }  # fmt: skip
        with Collector() as collector:
            options = (
                "--keys", str(keys), "--log-file", str(log), "--otlp", collector.url, "--drain-delay", "0",
                "--drain-timeout", "0.5",
            )  # fmt: skip
            async with FakeTriton(CARD, answer=answer) as fake:
                gateway = GatewayProcess(fake, options=options, **environment)
                async with gateway:
                    statuses = set()
                    for headers in ({"authorization": f"Bearer {key}"}, {"authorization": f"Bearer sk-{CANARY}"}):
                        for path, body in bodies():
                            reply = await ask(gateway, path, body, headers)
                            statuses.add(reply.status)
                            if b"/models/" in reply.body:
                                raise AssertionError(f"a file's name reaches a client: {reply.body!r}")
                            if reply.status == 500:
                                assert CANARY.encode() not in reply.body
                    assert {200, 400, 401, 404, 500} <= statuses
                    leaving = await gateway.connect()
                    body = {"model": "demo", "prompt": CANARY, "stream": True, "seed": 7}
                    leaving.send(
                        "POST", "/v1/completions", json.dumps(body).encode(), {**JSON, "authorization": f"Bearer {key}"}
                    )
                    await leaving.head()
                    leaving.close()
                    await until(lambda: not fake.running)
                    metrics = (await gateway.ask("/metrics", private=True)).body
                    gateway.signal()
                    await gateway.status()
            kept = {
                "output": gateway.output, "errors": gateway.errors, "metrics": metrics, "log": log.read_bytes(),
                "traces": b"".join(collector.bodies), "keys": keys.read_bytes().replace(CANARY.encode(), b"", 1),
            }  # fmt: skip
            assert b"DEBUG" in kept["errors"], "the loggers are not talkative"
            assert len(kept["log"].splitlines()) > 2 * len(bodies())
            assert collector.spans
            for name, content in kept.items():
                assert CANARY.encode() not in content.lower(), f"{name}: {_around(content, CANARY.encode())!r}"
                assert secret.encode() not in content, name
            assert not list(scratch.iterdir())

    run(test)


def _around(content: bytes, text: bytes) -> bytes:
    at = content.lower().index(text)
    return content[max(0, at - 200) : at + 200]
