"""`trident bench` as its own process, against a server whose delays are known."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.deployment import command
from tests.fakes.streaming_server import NUM_INPUT_TOKENS, Double, streaming
from trident_tools.main import main

FAST = ("--ramp", "0.3", "--duration", "1.2", "--metrics-url", "http://127.0.0.1:9/metrics")


@dataclass(frozen=True)
class Run:
    """A finished command."""

    status: int
    stdout: str
    stderr: str
    report: dict[str, Any]

    @property
    def stages(self) -> list[dict[str, Any]]:
        stages: list[dict[str, Any]] = self.report["stages"]
        return stages


def bench(tmp_path: Path, *options: object) -> Run:
    """The command, to its end, with its JSON and every request in it."""
    file = tmp_path / "report.json"
    words = command("bench", *options, "--json", file, "--records")
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, check=False)
    return Run(done.returncode, done.stdout, done.stderr, json.loads(file.read_text()) if file.exists() else {})


def test_bench_command_closed_loop_over_generate_stream(tmp_path: Path) -> None:
    """Two stages: latencies are the server's, the ramp is left out, the server's own counts are read."""
    page = tmp_path / "page.html"
    with streaming(Double()) as double:
        run = bench(
            tmp_path, "--protocol", "generate_stream", "--url", double.url, "--users", "2,4", "--output-tokens", "11",
            "--ramp", "1", "--duration", "2", "--metrics-url", f"{double.url}/metrics", "--html", page,
            "--goodput", "time_to_first_token:1000", "request_latency:5000", "--field", "tenant=a",
            "--field", "top_k=3",
        )  # fmt: skip
    assert run.status == 0, run.stderr
    assert [stage["load"] for stage in run.stages] == [{"users": 2}, {"users": 4}]
    for stage, users in zip(run.stages, (2, 4), strict=True):
        metrics, begin, end = stage["metrics"], stage["window"]["begin_s"], stage["window"]["end_s"]
        assert 100 <= metrics["time_to_first_token"]["p50"] < 200
        assert metrics["inter_token_latency"]["p50"] == pytest.approx(20, rel=0.4)
        assert metrics["request_latency"]["p50"] == pytest.approx(300, rel=0.4)
        assert metrics["output_sequence_length"]["min"] == metrics["output_sequence_length"]["max"] == 11
        assert metrics["input_sequence_length"]["avg"] == NUM_INPUT_TOKENS
        assert stage["output_token_throughput"] == pytest.approx(users * 11 / 0.3, rel=0.4)
        assert stage["goodput"] == pytest.approx(stage["requests"] / (end - begin))
        assert stage["request_throughput"] == pytest.approx(users / 0.3, rel=0.5)
        assert stage["errors"] == {}
        assert begin >= 1
        assert end - begin == pytest.approx(2, abs=0.8)
        counting = [record for record in stage["records"] if record["counts"]]
        assert len(counting) == stage["requests"] < len(stage["records"])
        assert all(begin <= record["scheduled_at_s"] < end for record in counting)

        counted = stage["server"]["counters"]['nv_llm_requests_total{model="core"}']
        assert counted == pytest.approx(stage["requests"], abs=users)
        assert stage["server"]["gauges"] == {'nv_llm_step_time_model{coefficient="base"}': 0.002}

    assert {json.dumps({**body, "text_input": ""}, sort_keys=True) for body in double.bodies} == {
        json.dumps(
            {"text_input": "", "max_tokens": 11, "stream": True, "ignore_eos": True, "tenant": "a", "top_k": 3},
            sort_keys=True,
        )
    }
    assert {len(body["text_input"].split()) for body in double.bodies} == {128}, "about as long as asked for"
    assert "time_to_first_token (ms)" in run.stdout
    assert "a word is taken for a token" in run.stderr
    assert "4 users" in page.read_text()


def test_bench_command_chat_over_openai(tmp_path: Path) -> None:
    """Token counts are those of the usage; end of text is left to the model."""
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 6}\n')
    with streaming(Double()) as double:
        run = bench(
            tmp_path, "--protocol", "openai", "--url", f"{double.url}/v1", "--users", "3", "--prompts", prompts, *FAST
        )  # fmt: skip
    assert run.status == 0, run.stderr
    metrics = run.stages[0]["metrics"]
    assert run.report["model"] == "double"
    assert metrics["output_sequence_length"]["avg"] == 6
    assert metrics["input_sequence_length"]["avg"] == NUM_INPUT_TOKENS
    assert 100 <= metrics["time_to_first_token"]["p50"] < 200
    assert metrics["inter_token_latency"]["p50"] == pytest.approx(20, rel=0.4)
    assert double.bodies[0] == {
        "model": "double", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 6, "stream": True,
        "stream_options": {"include_usage": True},
    }  # fmt: skip


def test_bench_command_completions_over_openai(tmp_path: Path) -> None:
    with streaming(Double(token_seconds=0.01)) as double:
        url = f"{double.url}/v1"
        run = bench(tmp_path, "--protocol", "openai", "--url", url, "--users", "1", "--output-tokens", "4", *FAST)
    assert run.status == 0, run.stderr
    assert run.stages[0]["metrics"]["output_sequence_length"]["avg"] == 4
    assert double.bodies[0]["ignore_eos"] is True
    assert isinstance(double.bodies[0]["prompt"], str)


def test_bench_command_open_loop_sees_a_stall(tmp_path: Path) -> None:
    """Who was to be sent while the server stood still, waited for it: that is in the latencies, for each of them."""
    with streaming(Double(stall_after=1.0, stall_seconds=1.0)) as double:
        run = bench(
            tmp_path, "--protocol", "generate_stream", "--url", double.url, "--rate", "40", "--output-tokens", "2",
            "--ramp", "0", "--duration", "3", "--metrics-url", "http://127.0.0.1:9/metrics", "--seed", "3",
        )  # fmt: skip
    assert run.status == 0, run.stderr
    stage = run.stages[0]
    records = sorted(stage["records"], key=lambda record: record["scheduled_at_s"])
    stall = records[0]["sent_at_s"] + 1.0
    stalled = [record for record in records if stall + 0.05 < record["scheduled_at_s"] < stall + 0.85]
    assert len(stalled) > 15, "requests went on coming"
    for record in stalled:
        left = (stall + 1.0 - record["scheduled_at_s"]) * 1000
        assert left - 60 < record["time_to_first_token_ms"] < left + 900
    assert stage["metrics"]["time_to_first_token"]["max"] > 900
    assert stage["requests"] == pytest.approx(120, abs=4 * 120**0.5), "Poisson"
    gaps = [after["scheduled_at_s"] - before["scheduled_at_s"] for before, after in pairwise(records)]
    mean = sum(gaps) / len(gaps)
    deviation = (sum((gap - mean) ** 2 for gap in gaps) / len(gaps)) ** 0.5
    assert deviation / mean == pytest.approx(1, abs=0.35), "exponential gaps, not regular ones"


def test_bench_command_errors_are_counted_apart(tmp_path: Path) -> None:
    with streaming(Double(refuse_every=3)) as double:
        run = bench(
            tmp_path, "--protocol", "generate_stream", "--url", double.url, "--users", "8", "--output-tokens", "3",
            *FAST,
        )  # fmt: skip
    assert run.status == 0, run.stderr
    stage = run.stages[0]
    assert list(stage["errors"]) == ["[400] [UNAVAILABLE] N requests wait"]
    counting = [record for record in stage["records"] if record["counts"]]
    assert sum("error" in record for record in counting) == stage["errors"]["[400] [UNAVAILABLE] N requests wait"]
    assert sum("error" not in record for record in counting) == stage["requests"]
    assert stage["metrics"]["time_to_first_token"]["min"] >= 100, "a refusal is quick and no latency"
    assert "x [400] [UNAVAILABLE] N requests wait" in run.stdout


def test_bench_command_broken_and_unfinished_streams_are_errors(tmp_path: Path) -> None:
    options = ("--protocol", "generate_stream", "--users", "2", "--grace", "0.2", *FAST)
    with streaming(Double(break_streams=True)) as double:
        broken = bench(tmp_path, *options, "--url", double.url, "--output-tokens", "5")
    with streaming(Double()) as double:
        endless = bench(tmp_path, *options, "--url", double.url, "--output-tokens", "500")
    for run in (broken, endless):
        assert run.status == 1, "nothing was answered"
        assert run.stages[0]["requests"] == 0
    assert "trident bench: no request was answered in any stage; " in broken.stderr
    assert "failed with: HTTPParseError: Incomplete response." in broken.stderr
    assert "trident bench: no request began in the seconds that were measured" in endless.stderr
    assert list(broken.stages[0]["errors"]) == ["HTTPParseError: Incomplete response."]
    assert all(record["error"].startswith("unfinished") for record in endless.stages[0]["records"])
    assert endless.stages[0]["output_token_throughput"] == pytest.approx(2 / 0.02, rel=0.5), "tokens did arrive"


@pytest.mark.parametrize("quiet", [(), ("--quiet",)])
def test_bench_command_seconds_in_which_no_request_began_are_said_to_be_too_few(
    tmp_path: Path, quiet: tuple[str, ...]
) -> None:
    """The only user's first request begins in the ramp, and takes longer than what is measured."""
    with streaming(Double(first_token_seconds=2.0)) as double:
        run = bench(
            tmp_path, "--protocol", "generate_stream", "--url", double.url, "--users", "1", "--output-tokens", "2",
            *FAST, *quiet,
        )  # fmt: skip
    assert run.status == 1
    assert run.stderr.splitlines()[-1] == (
        "trident bench: no request began in the seconds that were measured, in any stage; raise --duration"
    )
    assert run.stages[0]["requests"] == 0
    assert "raise --duration" in run.report["notes"][-1]


def test_bench_command_ctrl_c_reports(tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    with streaming(Double()) as double:
        words = command(
            "bench", "--protocol", "generate_stream", "--url", double.url, "--users", "2,200", "--output-tokens", "3",
            "--ramp", "0", "--duration", "60", "--quiet", "--json", file, "--metrics-url", "http://127.0.0.1:9/metrics",
        )  # fmt: skip
        process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        try:
            deadline = time.monotonic() + 60
            while len(double.bodies) < 12 and time.monotonic() < deadline:
                time.sleep(0.05)
            process.send_signal(signal.SIGINT)
            began = time.monotonic()
            stdout, stderr = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 130
    assert time.monotonic() - began < 30
    assert stderr == ""
    report = json.loads(file.read_text())
    (stage,) = report["stages"]
    assert report["interrupted"]
    assert stage["requests"] >= 8
    assert stage["errors"] == {}
    assert "2 users" in stdout


def test_bench_command_a_quiet_pipe_gets_the_final_table_alone(tmp_path: Path) -> None:
    with streaming(Double(first_token_seconds=0.02)) as double:
        run = bench(
            tmp_path, "--protocol", "generate_stream", "--url", double.url, "--users", "1,2", "--output-tokens", "2",
            *FAST, "--quiet",
        )  # fmt: skip
    assert run.stderr == ""
    lines = [line.split() for line in run.stdout.splitlines() if line.strip()]
    assert [line[:2] for line in lines if line[0].isdigit()] == [["1", "user"], ["2", "users"]]
    assert len(lines) <= 5, "two of heading, a rule, a row a stage"
    assert "\x1b" not in run.stdout


def test_bench_command_no_server(tmp_path: Path) -> None:
    for protocol, url in (("grpc", "127.0.0.1:9"), ("generate_stream", "http://127.0.0.1:9")):
        run = bench(tmp_path, "--protocol", protocol, "--url", url, "--users", "1", *FAST)
        assert (run.status, run.report) == (1, {})
        assert "127.0.0.1:9" in run.stderr
        assert "Traceback" not in run.stderr


@pytest.mark.parametrize(
    "options",
    [(), ("--users", "0"), ("--users", "1", "--rate", "1"), ("--rate", "0"), ("--users", "1", "--duration", "0"),
     ("--users", "1", "--input-tokens", "normal"), ("--users", "1", "--tokenizer", "/nowhere"),
     ("--users", "1", "--json", "/nowhere/x.json"), ("--users", "1", "--field", "x")],
)  # fmt: skip
def test_bench_command_wrong_usage(options: tuple[str, ...]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["bench", *options])
    assert left.value.code == 2


def test_bench_command_what_is_missing_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "locust", None)
    assert main(["bench", "--users", "1"]) == 1
    assert "locust must be installed: pip install 'trident-llm[bench]'" in capsys.readouterr().err


def test_bench_command_importing_the_command_patches_nothing() -> None:
    code = "import trident_tools.bench, sys; print({'gevent', 'locust', 'ssl', 'grpc'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "set()"
