"""Whether `trident simulate` predicts what `trident bench` measures, on this machine.

Serves a random Llama of 12 layers x 768, puts it under a closed loop of few users, takes the step time from
that benchmark's JSON, and simulates the same load. Prints predicted, measured and their ratio for each number of users.
The step time is learned under the last number of users; the others are predictions of what was not fitted. A request
counts if it begins within the measured seconds, so these must be longer than a request takes.

    python -m tests.benchmarks.validate_simulation --users 1,4,8
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.benchmarks.checkpoint import NUM_LAYERS, make_checkpoint
from tests.benchmarks.commands import Stage, require_requests, run_trident, work_folder
from tests.e2e.build import build
from tests.e2e.server import Server, serve
from trident_tools.load.distributions import parse_distribution
from trident_tools.load.option_values import list_of, number_from_zero, positive_number, whole_number

_METRICS = ("time_to_first_token", "inter_token_latency", "request_latency")
_BOUND = 0.2
#: For a command to end, whatever was asked of it: a server waits behind it.
_MAX_SECONDS = 1800


def main() -> int:
    """Measure, predict, compare; returns 1 if a median TTFT or ITL is off by more than a fifth."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.validate_simulation", description=__doc__)
    parser.add_argument("--users", type=list_of(whole_number(1)), default=[1, 4, 8], metavar="N[,N...]")
    parser.add_argument("--input-tokens", type=parse_distribution, default="uniform:64:192")
    parser.add_argument("--output-tokens", type=parse_distribution, default="uniform:32:96")
    parser.add_argument("--ramp", type=number_from_zero, default=5.0, help="seconds")
    parser.add_argument(
        "--duration", type=positive_number, default=30.0, help="measured seconds for each number of users"
    )
    parser.add_argument("--layers", type=whole_number(1), default=NUM_LAYERS, help="of the network")
    args = parser.parse_args()
    load = [
        "--users", ",".join(map(str, args.users)), "--ramp", str(args.ramp),
        "--input-tokens", str(args.input_tokens), "--output-tokens", str(args.output_tokens),
    ]  # fmt: skip
    with work_folder() as work:
        make_checkpoint(work / "checkpoint", args.layers)
        repository = build(
            work / "checkpoint", work / "repository", "--kv-cache", "16384 tokens",
            "--max-seq-len", "2048",
            # The benchmark's words are unknown to this checkpoint's tokenizer, so all prompts are of one token.
            "--enable-kv-cache-reuse", "false",
        )  # fmt: skip
        with serve(repository, work / "log") as server:
            measured = _bench(server, repository, work / "bench.json", [*load, "--duration", str(args.duration)])
        require_requests(measured)
        words = ["--from-bench", str(work / "bench.json"), "--engine", str(repository), "--requests", "2000"]
        predicted = run_trident("simulate", [*words, *load], work / "simulated.json", _MAX_SECONDS)
    return _compare(predicted, measured)


def _bench(server: Server, repository: Path, file: Path, words: list[str]) -> list[Stage]:
    tokenizer = repository / "core" / "1" / "tokenizer"
    urls = [
        "--protocol",
        "generate_stream",
        "--url",
        f"http://{server.http}",
        "--metrics-url",
        f"http://{server.host}:{server.metrics_port}/metrics",
    ]
    return run_trident("bench", [*urls, "--tokenizer", str(tokenizer), *words], file, _MAX_SECONDS)


def _compare(predicted: list[Stage], measured: list[Stage]) -> int:
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
