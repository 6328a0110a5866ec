"""Whether `trident simulate` predicts what `trident bench` measures, on this machine.

Serves a random Llama of 12 layers x 768, puts it under a closed loop of few users, takes the step time from
that benchmark's JSON, and simulates the same load. Prints predicted, measured and their ratio for each number of users.
The step time is learned under the last number of users; the others are predictions of what was not fitted.

    python -m tests.benchmarks.validate_simulation --users 1,4,8
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.benchmarks.checkpoint import make_checkpoint
from tests.e2e.build import build
from tests.e2e.server import Server, serve

_METRICS = ("time_to_first_token", "inter_token_latency", "request_latency")
_BOUND = 0.2
#: For a command to end, whatever was asked of it: a server waits behind it.
_MAX_SECONDS = 1800


def main() -> int:
    """Measure, predict, compare; returns 1 if a median TTFT or ITL is off by more than a fifth."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.validate_simulation", description=__doc__)
    parser.add_argument("--users", default="1,4,8")
    parser.add_argument("--input-tokens", default="uniform:64:192")
    parser.add_argument("--output-tokens", default="uniform:32:96")
    parser.add_argument("--ramp", default="5", help="seconds")
    parser.add_argument("--duration", default="30", help="measured seconds for each number of users")
    args = parser.parse_args()
    load = [
        *("--users", args.users, "--input-tokens", args.input_tokens, "--output-tokens", args.output_tokens),
        *("--ramp", args.ramp),
    ]
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        make_checkpoint(work / "checkpoint")
        repository = build(
            work / "checkpoint", work / "repository", "--kv-cache", "16384 tokens",
            "--max-seq-len", "2048",
            # The benchmark's words are unknown to this checkpoint's tokenizer, so all prompts are of one token.
            "--enable-kv-cache-reuse", "false",
        )  # fmt: skip
        with serve(repository, work / "log") as server:
            measured = _bench(server, repository, work / "bench.json", [*load, "--duration", args.duration])
        words = ["--from-bench", str(work / "bench.json"), "--engine", str(repository), "--requests", "2000"]
        predicted = _trident("simulate", work / "simulated.json", [*words, *load])
    return _compare(predicted, measured)


def _bench(server: Server, repository: Path, file: Path, words: list[str]) -> list[dict[str, Any]]:
    tokenizer = repository / "core" / "1" / "tokenizer"
    urls = [
        "--protocol",
        "generate_stream",
        "--url",
        f"http://{server.http}",
        "--metrics-url",
        f"http://{server.host}:{server.metrics_port}/metrics",
    ]
    return _trident("bench", file, [*urls, "--tokenizer", str(tokenizer), *words])


def _trident(command: str, file: Path, words: list[str]) -> list[dict[str, Any]]:
    """Run a command that writes JSON; its stages."""
    subprocess.run(
        [sys.executable, "-m", "trident_tools.main", command, *words, "--json", str(file), "--quiet"],
        check=True,
        stdout=subprocess.DEVNULL,
        timeout=_MAX_SECONDS,
    )
    stages: list[dict[str, Any]] = json.loads(file.read_text())["stages"]
    return stages


def _compare(predicted: list[dict[str, Any]], measured: list[dict[str, Any]]) -> int:
    table = Table("users", "median of", "measured, ms", "predicted, ms", "ratio")
    worst = 0.0
    for ours, theirs in zip(predicted, measured, strict=True):
        for metric in _METRICS:
            was, said = theirs["metrics"][metric]["p50"], ours["metrics"][metric]["p50"]
            table.add_row(str(theirs["load"]["users"]), metric, f"{was:.1f}", f"{said:.1f}", f"{said / was:.2f}")
            if metric != "request_latency":
                worst = max(worst, abs(said / was - 1))
    console = Console()
    console.print(table)
    console.print(f"the worst median of TTFT and ITL is off by {worst:.0%}; {_BOUND:.0%} is aimed at")
    return int(worst > _BOUND)


if __name__ == "__main__":
    sys.exit(main())
