"""`make bench BENCH=load`: the whole deployment under load, by `trident bench` itself.

Time to first token and inter-token latency at 10, 50 and 100 users, with prompts whole, in chunks, and in chunks that
keep a latency budget; what the prefix cache does for a shared system prompt of 512 tokens; and whether the client's
figures, the server's metrics and the simulation agree on one and the same run. A random Llama of 12 layers x 768.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.benchmarks.checkpoint import NUM_LAYERS, make_checkpoint
from tests.benchmarks.commands import Stage, require_requests, run_trident, work_folder
from tests.e2e.build import build
from tests.e2e.server import Server, serve
from trident_tools.load.option_values import list_of, number_from_zero, positive_number, whole_number

#: Holds every prompt that waits at a time whole: as a server without chunked context computes them.
WHOLE = 4096
CHUNK = 512
LENGTHS = ("--input-tokens", "uniform:32:224", "--output-tokens", "uniform:16:48")


def main() -> None:
    """Run and show."""
    parser = argparse.ArgumentParser(prog="make bench BENCH=load", description=__doc__)
    parser.add_argument("--users", type=list_of(whole_number(1)), default=[10, 50, 100], metavar="N[,N...]")
    parser.add_argument("--ramp", type=number_from_zero, default=20.0, help="seconds")
    parser.add_argument("--duration", type=positive_number, default=40.0, help="measured seconds a stage")
    parser.add_argument("--target-itl-ms", type=whole_number(1), default=250, help="of the latency budget")
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="fp32")
    parser.add_argument("--layers", type=whole_number(1), default=NUM_LAYERS, help="of the network")
    parser.add_argument("--only", choices=("users", "prefix"), help="one part alone")
    parser.add_argument("--json", type=Path, help="write everything here too")
    args = parser.parse_args()
    users = ",".join(map(str, args.users))
    console = Console()
    outcome: dict[str, Any] = {}
    with work_folder() as work:
        make_checkpoint(work / "checkpoint", args.layers)
        repository = build(
            work / "checkpoint", work / "repository", "--precision", args.precision, "--kv-cache", "65536 tokens",
            "--max-num-tokens", str(WHOLE), "--max-num-seqs", "128", "--max-seq-len", "2048",
        )  # fmt: skip
        bench = Bench(repository, work, ["--ramp", str(args.ramp), "--duration", str(args.duration)])
        if args.only != "prefix":
            outcome["users"] = _under_users(bench, users, args.target_itl_ms, console)
            outcome["agreement"] = _agreement(bench, users, outcome["users"][f"chunks of {CHUNK}"], console)
        if args.only != "users":
            outcome["prefix"] = _shared_prefix(bench, console)
    if args.json:
        args.json.write_text(json.dumps(outcome, indent=2))


class Bench:
    """Serves one repository with changing settings and puts it under load."""

    def __init__(self, repository: Path, work: Path, timing: list[str]) -> None:
        self._repository = repository
        self._timing = timing
        self.work = work

    def run(self, options: list[str], load: list[str]) -> list[Stage]:
        """The stages of one load on a server with these options; written to `bench.json` too."""
        with serve(self._repository, self.work / "log", *options) as server:
            return self._load(server, load)

    def _load(self, server: Server, load: list[str]) -> list[Stage]:
        tokenizer = self._repository / "core" / "1" / "tokenizer"
        metrics = f"http://{server.host}:{server.metrics_port}/metrics"
        where = ["--url", server.grpc, "--metrics-url", metrics, "--tokenizer", str(tokenizer)]
        words = [*where, *self._timing, "--grace", "120", *load]
        stages = run_trident("bench", words, self.work / "bench.json")
        require_requests(stages)
        return stages

    def simulate(self, load: list[str], options: list[str]) -> list[Stage]:
        """What the simulation says of the load that was run last."""
        base = ["--from-bench", str(self.work / "bench.json"), "--engine", str(self._repository)]
        return run_trident("simulate", [*base, *self._timing, *load, *options], self.work / "simulated.json")


def _under_users(bench: Bench, users: str, target_itl_ms: int, console: Console) -> dict[str, list[Stage]]:
    # The one whose run the simulation is compared with comes last.
    variants = {
        "prompts whole": ["--token-budget", str(WHOLE)],
        f"target_itl_ms {target_itl_ms}": ["--target-itl-ms", str(target_itl_ms)],
        f"chunks of {CHUNK}": ["--token-budget", str(CHUNK)],
    }
    outcome = {name: bench.run(options, ["--users", users, *LENGTHS]) for name, options in variants.items()}
    table = Table("", "users", "TTFT p50", "TTFT p95", "ITL p50", "ITL p95", "gap p95", "gap p99", "tokens/s", "errors")
    for name, stages in outcome.items():
        for stage in stages:
            row = [
                *(_metric(stage, "time_to_first_token", percentile) for percentile in ("p50", "p95")),
                *(_metric(stage, "inter_token_latency", percentile) for percentile in ("p50", "p95")),
                *(_metric(stage, "inter_chunk_latency", percentile) for percentile in ("p95", "p99")),
                stage["output_token_throughput"],
            ]
            cells = (f"{value:.0f}" for value in row)
            table.add_row(name, str(stage["load"]["users"]), *cells, str(sum(stage["errors"].values())))
    console.print(table)
    return outcome


def _agreement(bench: Bench, users: str, stages: list[Stage], console: Console) -> list[dict[str, float]]:
    """Client, server and simulation on the run that came last."""
    simulated = bench.simulate(["--users", users, *LENGTHS], ["--token-budget", str(CHUNK)])
    table = Table("users", "", "client", "server", "simulation", title="one run, three views")
    rows = []
    for stage, predicted in zip(stages, simulated, strict=True):
        histograms = stage["server"]["histograms"]

        def server(name: str, part: str, histograms: Any = histograms) -> float:
            return float(next(value[part] for series, value in histograms.items() if series.startswith(name + "{")))

        row = {
            "users": stage["load"]["users"],
            "client TTFT mean": _metric(stage, "time_to_first_token", "avg"),
            "server TTFT mean": 1000 * server("nv_llm_time_to_first_token_seconds", "mean"),
            "client TTFT p50": _metric(stage, "time_to_first_token", "p50"),
            "simulated TTFT p50": _metric(predicted, "time_to_first_token", "p50"),
            "client ITL p50": _metric(stage, "inter_token_latency", "p50"),
            "simulated ITL p50": _metric(predicted, "inter_token_latency", "p50"),
            "client gap mean": _metric(stage, "inter_chunk_latency", "avg"),
            "server gap mean": 1000 * server("nv_llm_inter_token_latency_seconds", "mean"),
            "client tokens/s": stage["output_token_throughput"],
            "simulated tokens/s": predicted["output_token_throughput"],
        }
        rows.append(row)
        for view, keys in {
            "TTFT mean, ms": ("client TTFT mean", "server TTFT mean", ""),
            "TTFT median, ms": ("client TTFT p50", "", "simulated TTFT p50"),
            "ITL median, ms": ("client ITL p50", "", "simulated ITL p50"),
            "gap mean, ms": ("client gap mean", "server gap mean", ""),
            "tokens/s": ("client tokens/s", "", "simulated tokens/s"),
        }.items():
            table.add_row(str(row["users"]), view, *(f"{row[key]:.1f}" if key else "" for key in keys))
    console.print(table)
    return rows


def _shared_prefix(bench: Bench, console: Console) -> dict[str, float]:
    """Ten users, a system prompt of 512 tokens before 64 of their own."""
    load = ["--users", "10", "--shared-prefix", "512", "--input-tokens", "64", "--output-tokens", "32"]
    medians: dict[str, list[float]] = {"true": [], "false": []}
    for turn in (("true", "false"), ("false", "true")):
        for reuse in turn:
            (stage,) = bench.run(["--token-budget", str(CHUNK), "--enable-kv-cache-reuse", reuse], load)
            medians[reuse].append(_metric(stage, "time_to_first_token", "p50"))
            console.print(
                f"enable_kv_cache_reuse {reuse}: TTFT p50 {medians[reuse][-1]:.0f} ms, "
                f"{stage['output_token_throughput']:.0f} tokens/s"
            )
    ratio = sum(medians["false"]) / sum(medians["true"])
    console.print(f"a shared system prompt's time to first token is {ratio:.1f} times shorter with the prefix cache")
    return {"with, ms": sum(medians["true"]) / 2, "without, ms": sum(medians["false"]) / 2, "ratio": ratio}


def _metric(stage: Stage, name: str, statistic: str) -> float:
    return float(stage["metrics"][name][statistic])


if __name__ == "__main__":
    main()
