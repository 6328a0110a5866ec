"""`trident bench` on the real server: every request is answered with exactly the tokens that were asked for."""

from __future__ import annotations

import itertools
import json
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.checkpoints import tiny_tokenizer
from tests.e2e.server import Server
from tests.fakes.deployment import command
from trident_tools.load.distributions import parse_distribution
from trident_tools.load.prompts import PromptPlan, make_prompts
from trident_tools.load.text_maker import TextMaker, open_tokenizer

INPUT, OUTPUT, PREFIX, SEED = "uniform:20:60", "normal:16:4", 32, 11


def bench(server: Server, folder: Path, *options: object) -> dict[str, Any]:
    """The report of a short run."""
    tiny_tokenizer().save_pretrained(folder)
    report = folder / "report.json"
    words = command(
        "bench", *options, "--ramp", "0.5", "--duration", "2", "--tokenizer", folder, "--input-tokens", INPUT,
        "--output-tokens", OUTPUT, "--shared-prefix", PREFIX, "--seed", SEED, "--json", report, "--records",
        "--metrics-url", f"http://{server.host}:{server.metrics_port}/metrics", "--field", "temperature=0.5",
    )  # fmt: skip
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    parsed: dict[str, Any] = json.loads(report.read_text())
    return parsed


def expected(folder: Path, count: int) -> Counter[tuple[int, int]]:
    """Lengths of the first prompts of this seed, as the tokenizer counts them."""
    plan = PromptPlan(parse_distribution(INPUT), parse_distribution(OUTPUT), PREFIX, (), SEED)
    texts = TextMaker(open_tokenizer(str(folder)))
    prompts = itertools.islice(make_prompts(plan, texts), count)
    return Counter((texts.count(str(prompt.text)), prompt.max_tokens) for prompt in prompts)


@pytest.mark.parametrize("load", [("--users", "6"), ("--rate", "30")])
@pytest.mark.parametrize("protocol", ["grpc", "generate_stream"])
def test_bench_every_request_is_answered_as_asked(
    server: Server, tmp_path: Path, protocol: str, load: tuple[str, str]
) -> None:
    url = server.grpc if protocol == "grpc" else server.url("")
    report = bench(server, tmp_path, "--protocol", protocol, "--url", url, *load)
    (stage,) = report["stages"]
    records = stage["records"]
    assert stage["errors"] == {}
    assert not any("error" in record for record in records), "nor in the ramp"
    counts = Counter((record["num_input_tokens"], record["num_output_tokens"]) for record in records)
    assert counts == expected(tmp_path, len(records))
    assert {record["finish_reason"] for record in records} == {"length"}
    assert stage["requests"] > 20
    assert stage["output_token_throughput"] > 0
    for name in ("time_to_first_token", "inter_token_latency", "request_latency"):
        assert 0 < stage["metrics"][name]["p50"] < 5000
    gauges = stage["server"]["gauges"]
    assert any(name.startswith("nv_trt_llm_request_metrics{") and value > 0 for name, value in gauges.items())
    assert server.num_active == 0


def test_bench_an_unknown_field_is_named(server: Server) -> None:
    words = command("bench", "--url", server.grpc, "--users", "1", "--field", "temprature=1")
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 1
    assert "temprature" in done.stderr
    assert "temperature" in done.stderr, "what there is, too"
