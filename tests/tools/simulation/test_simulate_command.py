"""`trident simulate` as users call it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.tools.simulation.test_simulate_roofline import write_config
from trident_ensemble.contract import layout
from trident_ensemble.contract.manifest import (
    FORMAT_VERSION,
    Architecture,
    Compiler,
    Generation,
    KVKind,
    KVLayout,
    Limits,
    Manifest,
    Precision,
    write_manifest,
)
from trident_ensemble.contract.model_card import ModelCard
from trident_ensemble.contract.settings import CoreSettings
from trident_ensemble.wiring import RepositorySettings, render_repository
from trident_tools.main import main

KNOWN = ["--step-time", "5e-3,2e-5,3e-8", "--kv-tokens", "65536"]
SHORT = ["--requests", "50", "--ramp", "0", "--output-tokens", "10", "--processes", "1"]


def simulated(tmp_path: Path, *words: str) -> dict[str, Any]:
    """Run the command; its JSON."""
    file = tmp_path / "simulated.json"
    assert main(["simulate", *words, *SHORT, "--json", str(file)]) == 0
    result: dict[str, Any] = json.loads(file.read_text())
    return result


def manifest(*, num_blocks: int, block_size: int = 16, kind: KVKind = KVKind.BLOCKS) -> Manifest:
    """Of an engine that was built for little."""
    return Manifest(
        format_version=FORMAT_VERSION,
        architecture=Architecture("llama", 2, 100),
        limits=Limits(6, 48, 512),
        precision=Precision("bf16", "bf16", "u8"),
        kv_cache=KVLayout(block_size, num_blocks, 1024, kind),
        compiler=Compiler("test", "1"),
        generation=Generation((0,), 0.0, 0, 1.0),
        digests={},
    )


def test_simulate_command_writes_every_figure_of_every_load(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written = simulated(tmp_path, *KNOWN, "--rate", "5,20", "--price-per-hour", "3.6")
    assert [stage["load"] for stage in written["stages"]] == [{"rate": 5}, {"rate": 20}]
    for stage in written["stages"]:
        assert stage["num_requests"] == 50
        for latency in ("time_to_first_token", "inter_token_latency", "inter_chunk_latency", "request_latency"):
            spread = stage["metrics"][latency]
            assert 0 < spread["p50"] <= spread["p90"] <= spread["p95"] <= spread["p99"] <= spread["max"]
        # 3.6 an hour is a thousandth a second.
        cost = 1e6 * 0.001 / stage["output_token_throughput"]
        assert stage["cost_per_million_output_tokens"] == pytest.approx(cost)
        assert stage["cost_per_million_tokens"] == pytest.approx(1e6 * 0.001 / stage["total_token_throughput"])
    configuration = written["configuration"]
    assert configuration["engine"]["num_blocks"] * configuration["engine"]["block_size"] == 65536
    assert configuration["settings"]["batch_scheduler_policy"] == "guaranteed_no_evict"
    assert configuration["workload"]["output_tokens"] == "10"
    tables = capsys.readouterr().out
    assert "TTFT" in tables
    assert f"{written['stages'][1]['metrics']['time_to_first_token']['p50']:.3g}" in tables


def test_simulate_command_without_a_price_there_is_no_cost(tmp_path: Path) -> None:
    [stage] = simulated(tmp_path, *KNOWN, "--users", "2")["stages"]
    assert stage["load"] == {"users": 2}
    assert stage["cost_per_million_output_tokens"] is None


def test_simulate_command_settings_reach_the_scheduler(tmp_path: Path) -> None:
    [free] = simulated(tmp_path, *KNOWN, "--rate", "100")["stages"]
    [one] = simulated(tmp_path, *KNOWN, "--rate", "100", "--max-num-seqs", "1", "--max-queue-size", "5")["stages"]
    assert one["num_running"] <= 1
    assert one["num_refused"] > 0 == free["num_refused"]


def test_simulate_command_a_built_engine_gives_its_limits_and_its_repository_the_settings(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    settings = RepositorySettings(1, 1, CoreSettings(target_itl_ms=7))
    for name, text in render_repository(settings, ModelCard("demo", 0, 512)).items():
        (repository / name).parent.mkdir(parents=True, exist_ok=True)
        (repository / name).write_text(text)
    engine = repository / layout.CORE / "1"
    engine.mkdir()
    write_manifest(engine, manifest(num_blocks=64))
    load = ["--step-time", "5e-3,2e-5", "--rate", "5", "--input-tokens", "20"]
    whole = simulated(tmp_path, *load, "--engine", str(repository))["configuration"]
    assert whole["engine"] | {"vocab_size": 0} == {
        "vocab_size": 0,
        "max_num_seqs": 6,
        "max_num_tokens": 48,
        "max_seq_len": 512,
        "block_size": 16,
        "num_blocks": 64,
        "kv_kind": "blocks",
        "supports_draft_tokens": True,
    }
    assert whole["settings"]["target_itl_ms"] == "7"
    alone = simulated(tmp_path, *load, "--engine", str(engine), "--max-num-seqs", "3")["configuration"]
    assert alone["engine"]["max_num_seqs"] == 3
    assert alone["settings"]["target_itl_ms"] == "0"


def test_simulate_command_an_engine_with_slots_is_simulated_with_slots(tmp_path: Path) -> None:
    write_manifest(tmp_path, manifest(num_blocks=4, block_size=512, kind=KVKind.SLOTS))
    load = ["--step-time", "5e-3,2e-5", "--input-tokens", "20", "--users", "6", "--engine", str(tmp_path)]
    written = simulated(tmp_path, *load)
    assert written["configuration"]["engine"]["kv_kind"] == "slots"
    assert written["configuration"]["engine"]["max_seq_len"] == 512
    assert 3 < written["stages"][0]["num_running"] <= 4, "a slot each"
    shorter = simulated(tmp_path, *load, "--block-size", "256")["configuration"]["engine"]
    assert (shorter["num_blocks"], shorter["max_seq_len"]) == (8, 256)


def test_simulate_command_a_gpu_and_a_checkpoint_are_enough(tmp_path: Path) -> None:
    checkpoint = str(write_config(tmp_path / "checkpoint"))
    load = ["--users", "1", "--step-overhead-ms", "0", "--bandwidth-share", "1"]
    written = simulated(tmp_path, "--gpu", "h200", "--model", checkpoint, *load)
    # A lone stream is bound by reading the weights, without the embeddings, at the memory's full rate.
    least = 1000 * 2 * (6_979_321_856 + 525_336_576) / 4.8e12
    assert written["stages"][0]["metrics"]["inter_token_latency"]["avg"] == pytest.approx(least, rel=0.01)
    own = ["--bandwidth", "2.4e12", "--flops", "1e15", "--memory", "80e9"]
    [slower] = simulated(tmp_path, *own, "--model", checkpoint, *load)["stages"]
    assert slower["metrics"]["inter_token_latency"]["avg"] == pytest.approx(2 * least, rel=0.01)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--rate", "1"], "--from-bench, --step-time"),
        (["--rate", "1", "--step-time", "1e-3"], "--kv-tokens"),
        (["--rate", "1", "--step-time", "0,0", "--kv-tokens", "100"], "not all of them 0"),
        (["--rate", "1", "--step-time", "1,2,3,4,5", "--kv-tokens", "100"], "base,per_token,per_pair"),
        (["--rate", "1", "--step-time", "fast", "--kv-tokens", "100"], "'fast'"),
        (["--rate", "1", *KNOWN, "--kv-tokens", "5"], "less than one block"),
        (["--rate", "1", *KNOWN, "--max-num-tokens", "8", "--max-num-seqs", "9"], "--max-num-tokens"),
        (["--rate", "1", *KNOWN, "--token-budget", "1000000"], "--token-budget"),
        (["--rate", "1", "--gpu", "a100"], "--model"),
        (["--rate", "1", "--model", "anywhere"], "--gpu"),
        (["--rate", "1", "--bandwidth", "1e12", "--model", "anywhere"], "all three"),
        (["--rate", "1", "--gpu", "a100", "--weights", "fp8", "--model", "anywhere"], "no fp8"),
        (["--rate", "1", *KNOWN, "--engine", "nowhere"], "engine.json is missing"),
        (["--rate", "1", "--from-bench", "nowhere.json"], "nowhere.json"),
    ],
)
def test_simulate_command_says_what_does_not_go_together(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["simulate", *words]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("trident simulate: ")


@pytest.mark.parametrize(
    "words",
    [
        KNOWN,
        ["--rate", "0", *KNOWN],
        ["--rate", "1", *KNOWN, *SHORT, "--json", "no/such/folder/file"],
        ["--rate", "1", *KNOWN, "--flops-share", "1.5"],
        ["--users", "1.5", *KNOWN],
        ["--rate", "1", "--users", "1", *KNOWN],
        ["--rate", "1", "--requests", "5", "--duration", "5", *KNOWN],
        ["--rate", "1", "--input-tokens", "normal:5", *KNOWN],
        ["--rate", "1", "--flops-share", "1.5", *KNOWN],
        ["--rate", "1", "--router", "random", *KNOWN],
    ],
)
def test_simulate_command_a_wrong_option_is_a_wrong_usage(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        main(["simulate", *words])
    assert raised.value.code == 2
    assert "usage:" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("processes", ["1", "2"])
def test_simulate_command_an_interrupt_ends_it_and_keeps_what_is_done(processes: str, tmp_path: Path) -> None:
    file = tmp_path / "simulated.json"
    # The first load is done at once, the second would take minutes.
    words = [*KNOWN, "--rate", "0.2,50", "--ramp", "0", "--duration", "20000", "--output-tokens", "5"]
    process = subprocess.Popen(
        [sys.executable, "-m", "trident_tools.main", "simulate", *words, "--processes", processes, "--json", str(file)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stderr is not None
    try:
        first_line = process.stderr.readline()
        os.killpg(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert (process.returncode, first_line, err) == (130, "simulated 0.2 requests/s\n", "")
    assert "TTFT" in out
    assert [stage["load"] for stage in json.loads(file.read_text())["stages"]] == [{"rate": 0.2}]
