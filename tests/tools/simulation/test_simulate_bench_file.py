"""What a simulation takes from a benchmark: the learned step time, limits, and the time outside the core."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trident_backend.sequences.step_time import StepTime
from trident_ensemble.contract.errors import ConfigError
from trident_tools.load.bench_report import Outcome, render_json
from trident_tools.load.client_records import ClientRequestRecord
from trident_tools.load.loads import ClosedLoop
from trident_tools.load.scrape import difference, parse_page
from trident_tools.load.stage_result import StageResult
from trident_tools.load.statistics import MeasuredWindow, measure
from trident_tools.main import main
from trident_tools.simulation.bench_file import read_bench

PAGE = """\
# TYPE nv_llm_step_time_model gauge
nv_llm_step_time_model{{model="core",version="1",coefficient="base"}} {base}
nv_llm_step_time_model{{model="core",version="1",coefficient="per_token"}} 2e-05
nv_llm_step_time_model{{model="core",version="1",coefficient="per_pair"}} 3e-08
nv_llm_step_time_model{{model="core",version="1",coefficient="per_row"}} 0
# TYPE nv_trt_llm_kv_cache_block_metrics gauge
nv_trt_llm_kv_cache_block_metrics{{model="core",version="1",kv_cache_block_type="max"}} 100
nv_trt_llm_kv_cache_block_metrics{{model="core",version="1",kv_cache_block_type="used"}} 3
nv_trt_llm_kv_cache_block_metrics{{model="core",version="1",kv_cache_block_type="tokens_per"}} 16
# TYPE nv_trt_llm_request_metrics gauge
nv_trt_llm_request_metrics{{model="core",version="1",request_type="max"}} 24
# TYPE nv_llm_time_to_first_token_seconds histogram
nv_llm_time_to_first_token_seconds_bucket{{model="core",version="1",le="+Inf"}} {count}
nv_llm_time_to_first_token_seconds_sum{{model="core",version="1"}} {sum}
nv_llm_time_to_first_token_seconds_count{{model="core",version="1"}} {count}
"""


def stage(server: dict[str, Any] | None, first_token: float) -> StageResult:
    """Two requests whose first tokens came after so many seconds."""
    records = tuple(
        ClientRequestRecord(sent, sent, (sent + first_token, sent + first_token + 0.1), (1, 1), 8, 2, "length", "")
        for sent in (101.0, 102.0)
    )
    return StageResult(
        ClosedLoop(1), "2025-01-01T00:00:00", 100.0, MeasuredWindow(100, 110), records, server, 0.1, False
    )


def benched(tmp_path: Path, *stages: StageResult, model: str = "ensemble") -> Path:
    """A file as `trident bench --json` writes it."""
    file = tmp_path / "bench.json"
    pairs = tuple((each, measure(each.records, each.started_at, each.window, [])) for each in stages)
    file.write_text(render_json(Outcome({}, model, (), pairs), with_records=False))
    return file


def counted(base: float, total: float, count: int) -> dict[str, Any]:
    """What the server counted, two requests of it before the window."""
    before = parse_page(PAGE.format(base=0, sum=9.0, count=2))
    return difference(before, parse_page(PAGE.format(base=base, sum=9.0 + total, count=2 + count)))


def test_simulate_bench_file_takes_the_last_stage_that_read_the_server(tmp_path: Path) -> None:
    file = benched(
        tmp_path,
        stage(counted(0.001, 1.0, 2), 0.9),
        stage(counted(0.005, 0.5, 2), 0.3),
        stage(None, 7.0),
    )
    server = read_bench(file)
    assert server.step_time == StepTime(0.005, 2e-5, 3e-8, 0)
    assert server.overhead == pytest.approx(0.3 - 0.25)
    assert (server.max_num_seqs, server.block_size, server.kv_tokens) == (24, 16, 1600)


def test_simulate_bench_file_the_command_simulates_that_server(tmp_path: Path) -> None:
    file, out = benched(tmp_path, stage(counted(0.005, 0.5, 2), 0.3)), tmp_path / "simulated.json"
    words = ["--users", "1", "--requests", "5", "--ramp", "0", "--input-tokens", "40", "--json", str(out)]
    assert main(["simulate", "--from-bench", str(file), *words]) == 0
    written = json.loads(out.read_text())
    engine = written["configuration"]["engine"]
    assert (engine["max_num_seqs"], engine["block_size"], engine["num_blocks"]) == (24, 16, 100)
    expected = 50 + 1000 * (0.005 + 40 * 2e-5 + 40 * 41 / 2 * 3e-8)
    assert written["stages"][0]["metrics"]["time_to_first_token"]["p50"] == pytest.approx(expected)


def test_simulate_bench_file_overhead_is_never_negative(tmp_path: Path) -> None:
    assert read_bench(benched(tmp_path, stage(counted(0.005, 2.0, 2), 0.3))).overhead == 0


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda raw: raw["stages"][0].update(server=None), "--metrics-url"),
        (lambda raw: raw["stages"].clear(), "--metrics-url"),
        (lambda raw: raw.pop("stages"), "was not written by `trident bench --json`"),
        (lambda raw: raw["stages"][0]["server"].pop("gauges"), "was not written by `trident bench --json`"),
        (lambda raw: raw["stages"][0]["server"]["gauges"].clear(), "not learned"),
    ],
)
def test_simulate_bench_file_says_what_is_missing(spoil: Callable[[Any], None], message: str, tmp_path: Path) -> None:
    file = benched(tmp_path, stage(counted(0.005, 0.5, 2), 0.3))
    raw = json.loads(file.read_text())
    spoil(raw)
    file.write_text(json.dumps(raw))
    with pytest.raises(ConfigError, match=message):
        read_bench(file)


@pytest.mark.parametrize(("model", "base"), [("ensemble", 0.001), ("small", 0.005), ("owner/small", 0.001)])
def test_simulate_bench_file_of_several_models_takes_the_one_that_was_benched(
    tmp_path: Path, model: str, base: float
) -> None:
    one, other = counted(0.001, 1.0, 2), counted(0.005, 0.5, 2)
    both = {
        kind: one[kind] | {series.replace('"core"', '"small_core"'): value for series, value in other[kind].items()}
        for kind in one
    }
    assert read_bench(benched(tmp_path, stage(both, 0.9), model=model)).step_time.base == base
