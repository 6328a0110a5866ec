"""What measures and what is at hand: aiperf, `trident bench`, and curl."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.gateway.clients.answers import SENTENCE
from tests.gateway.clients.conftest import Served
from tests.gateway.clients.environments import PINNED, ROOT, program, run_client
from tests.gateway.clients.gateways import gateway
from tests.gateway.clients.relay import relaying

pytestmark = pytest.mark.slow

DEMO = ROOT / "tools" / "demo" / "checkpoint"
NUM_REQUESTS = 6
OUTPUT_TOKENS = 12


@pytest.fixture
def tokenizers(tmp_path: Path) -> Path:
    """A cache of tokenizers as a hub leaves it, with that of the demo as `trident/demo`: aiperf takes no folder."""
    model, commit = tmp_path / "hub" / "models--trident--demo", "0" * 40
    (model / "refs").mkdir(parents=True)
    (model / "refs" / "main").write_text(commit, encoding="ascii")
    shutil.copytree(DEMO, model / "snapshots" / commit, ignore=shutil.ignore_patterns("*.safetensors"))
    return tmp_path


def test_load_tools_aiperf(served: Served, tokenizers: Path, tmp_path: Path) -> None:
    folder = tmp_path / "figures"
    command: list[str | Path] = [
        program(PINNED, "aiperf"), "profile", "-m", "demo", "--url", f"http://127.0.0.1:{served.relay.port}",
        "--endpoint-type", "chat", "--streaming", "--tokenizer", "trident/demo", "--api-key", served.gateway.key,
        "--request-count", str(NUM_REQUESTS), "--num-dataset-entries", str(NUM_REQUESTS), "--concurrency", "2",
        "--synthetic-input-tokens-mean", "20", "--output-tokens-mean", str(OUTPUT_TOKENS),
        "--extra-inputs", "ignore_eos:true", "--use-server-token-count", "--ui", "none", "--workers-max", "1",
        "--record-processors", "1", "--no-server-metrics", "--output-artifact-dir", folder,
    ]  # fmt: skip
    run_client(command, seconds=400, HF_HOME=str(tokenizers))
    figures = json.loads((folder / "profile_export_aiperf.json").read_text(encoding="utf-8"))
    assert figures["is_complete"]
    assert figures["error_summary"] == []
    assert figures["request_count"]["avg"] == NUM_REQUESTS
    assert figures["output_sequence_length"]["avg"] == OUTPUT_TOKENS
    assert figures["usage_completion_tokens"]["avg"] == OUTPUT_TOKENS
    assert figures["inter_token_latency"]["avg"] > 1, "the answers come token by token"
    exchanges, problems = served.judged()
    assert len(exchanges) >= NUM_REQUESTS
    assert problems == []


@pytest.mark.parametrize("prompts", ["text", "messages"])
def test_load_tools_trident_bench(served: Served, tmp_path: Path, prompts: str) -> None:
    """It knows no keys, so this gateway has none."""
    report, file = tmp_path / "report.json", tmp_path / "prompts.jsonl"
    asked: dict[str, dict[str, Any]] = {
        "text": {"text_input": "The ferry"},
        "messages": {"messages": [{"role": "user", "content": "The ferry?"}]},
    }
    file.write_text(json.dumps({**asked[prompts], "max_tokens": OUTPUT_TOKENS}) + "\n", encoding="utf-8")
    with gateway(tmp_path, [served.triton.address], has_keys=False) as running, relaying(running.port) as relay:
        command: list[str | Path] = [
            sys.executable, "-m", "trident_tools.main", "bench", "--protocol", "openai", "--url", relay.url,
            "--users", "2", "--ramp", "0", "--duration", "1", "--prompts", file, "--quiet", "--json", report,
            "--records", "--metrics-url", f"{served.triton.address.metrics_url}/metrics",
        ]  # fmt: skip
        run_client(command)
        exchanges = relay.take()
    (stage,) = json.loads(report.read_text(encoding="utf-8"))["stages"]
    assert stage["requests"] > 0
    assert stage["errors"] == {}
    assert stage["metrics"]["output_sequence_length"]["avg"] == OUTPUT_TOKENS
    path = {"text": "/v1/completions", "messages": "/v1/chat/completions"}[prompts]
    assert {exchange.path for exchange in exchanges} == {"/v1/models", path}
    assert all(exchange.status == 200 for exchange in exchanges)


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed on this machine")
def test_load_tools_curl(served: Served) -> None:
    asked = {"model": "demo", "messages": [{"role": "user", "content": "The ferry?"}], "max_completion_tokens": 24}
    command = ["curl", "-sS", "--fail-with-body", f"{served.relay.url}/chat/completions", "--json"]
    key = ["-H", f"Authorization: Bearer {served.gateway.key}"]
    plain = json.loads(run_client([*command, json.dumps(asked), *key]))
    assert plain["choices"][0]["message"]["content"] == SENTENCE
    streamed = run_client([*command, json.dumps({**asked, "stream": True}), *key, "--no-buffer"])
    events = [line.removeprefix("data: ") for line in streamed.splitlines() if line]
    chunks = [json.loads(event) for event in events[:-1]]
    assert events[-1] == "[DONE]"
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == SENTENCE
    _, problems = served.judged()
    assert problems == []
