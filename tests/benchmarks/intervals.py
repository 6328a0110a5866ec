"""`make bench BENCH=intervals`: what `stream_interval_ms` gains and costs, through tritonserver, by number of users.

Each user asks again as soon as it is answered. Every interval is tried in every round, in turn, on one server, because
a request may name its own. "gap" is between two responses of a stream, "token" between two tokens, where those that
come in one response are 0 apart. "way" is what a token costs beside the core's process: the processor time of
tritonserver and of the text models' processes, which a busy machine changes little. Greedy, 64 tokens an answer; the
clients share the processor with the server.
"""

from __future__ import annotations

import argparse
import json
import os
import random
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table

from tests.benchmarks.checkpoint import NUM_LAYERS, make_checkpoint
from tests.benchmarks.commands import work_folder
from tests.benchmarks.compare import machine
from tests.benchmarks.served import ServedRun, run_served
from tests.e2e.build import build
from tests.e2e.server import serve
from trident_compiler.openvino.compiler import computes_bf16
from trident_tools.load.option_values import list_of, number_from_zero, whole_number

DEMO = Path(__file__).parents[2] / "tools" / "demo" / "checkpoint"
_OUTPUT_TOKENS = 64
_WORDS = "the a of to and in that is was he for it with as his on be at by I".split()  # noqa: SIM905 (it reads better)


def main() -> None:
    """Run all in turn and show medians over the rounds."""
    parser = argparse.ArgumentParser(prog="make bench BENCH=intervals", description=__doc__)
    parser.add_argument("--users", type=list_of(whole_number(1)), default=[1, 10, 50, 100], metavar="N[,N...]")
    parser.add_argument("--intervals", type=list_of(number_from_zero), default=[0, 20, 50, 100], metavar="MS[,MS...]")
    parser.add_argument("--rounds", type=whole_number(1), default=3)
    parser.add_argument("--requests", type=whole_number(1), default=3, help="of each user, a round")
    parser.add_argument(
        "--model", choices=("demo", "large"), default="demo", help="or a random Llama of 12 layers x 768"
    )
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="bf16" if computes_bf16() else "fp32")
    parser.add_argument("--layers", type=whole_number(1), default=NUM_LAYERS, help="of the large network")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    args = parser.parse_args()
    intervals = [int(interval) for interval in args.intervals]
    runs: dict[tuple[int, int], list[_Measured]] = {(users, ms): [] for users in args.users for ms in intervals}
    with work_folder() as work:
        checkpoint = DEMO
        if args.model == "large":
            checkpoint = work / "checkpoint"
            make_checkpoint(checkpoint, args.layers)
        repository = build(
            checkpoint, work / "repository", "--precision", args.precision, "--kv-cache", "32768 tokens",
            "--max-num-seqs", "128", "--max-seq-len", "512",
        )  # fmt: skip
        with serve(repository, work / "log") as server:
            for number in range(args.rounds + 1):
                for users in args.users:
                    turn = number % len(intervals)
                    for interval in intervals[turn:] + intervals[:turn]:
                        prompts = _prompts(number, users * args.requests)
                        options = {"num_users": users, "stream_interval_ms": interval}
                        before = _cpu_seconds(server.process.pid)
                        run = run_served(server.grpc, prompts, _OUTPUT_TOKENS, **options)
                        way = _cpu_seconds(server.process.pid) - before
                        # The first round warms up.
                        if number:
                            runs[users, interval].append(_Measured(run, way))
    outcome = [{"users": users, "interval_ms": ms, **_figures(own)} for (users, ms), own in runs.items()]
    columns = [*outcome[0]]
    table = Table(*(name.replace("_", " ") for name in columns), title=f"{args.model}, {machine()}")
    for row in outcome:
        table.add_row(*(f"{row[name]:.4g}" for name in columns))
    Console(width=150).print(table)
    if args.json:
        args.json.write_text(json.dumps({"machine": machine(), "model": args.model, "figures": outcome}, indent=2))


def _prompts(seed: int, count: int) -> list[str]:
    rng = random.Random(seed)  # noqa: S311 (prompts, not secrets)
    return [" ".join(rng.choices(_WORDS, k=24)) for _ in range(count)]


class _Measured(NamedTuple):
    """A run, and the seconds of processor time that its way through Triton took beside the core's process."""

    run: ServedRun
    way_s: float


def _cpu_seconds(root: int) -> float:
    """Return the processor time that a process and all below it have used, but for the core's process."""
    parents: dict[int, int] = {}
    ticks: dict[int, int] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            is_core = b"core_0_0" in (folder / "cmdline").read_bytes()
            parents[int(folder.name)] = int(fields[1])
            ticks[int(folder.name)] = 0 if is_core else int(fields[11]) + int(fields[12])

    def is_below(process: int) -> bool:
        while process != root and process in parents:
            process = parents[process]
        return process == root

    return sum(ticks[process] for process in ticks if is_below(process)) / os.sysconf("SC_CLK_TCK")


def _figures(measured: list[_Measured]) -> dict[str, float]:
    runs = [one.run for one in measured]

    def milliseconds(values: Iterable[list[float]], percent: float) -> float:
        return 1000 * float(np.percentile([value for own in values for value in own], percent))

    def spread(name: str, percent: float) -> float:
        return median(milliseconds((getattr(stream, name) for stream in run.streams), percent) for run in runs)

    return {
        "tokens/s": median(run.num_tokens / run.seconds for run in runs),
        "way us a token": median(1e6 * one.way_s / one.run.num_tokens for one in measured),
        "tokens a response": median(run.num_tokens / run.num_responses for run in runs),
        "gap_p50_ms": spread("gaps", 50),
        "gap_p99_ms": spread("gaps", 99),
        "token_p50_ms": spread("token_gaps", 50),
        "token_p99_ms": spread("token_gaps", 99),
        "first_p50_ms": median(1000 * median(run.first_token_seconds) for run in runs),
    }


if __name__ == "__main__":
    main()
