"""The tables of `make bench-gpu`.

Owns how figures are shown, as far as there are any: a part may have failed. Never measures.
"""

from __future__ import annotations

import argparse

from rich.console import Console
from rich.table import Table

from tests.benchmarks.gpu_record import Outcome


def show_build(outcome: Outcome, console: Console) -> None:
    """How long it took, and what came of it."""
    build = outcome["build"]
    console.print(
        f"{outcome['gpu']}, built in {build['seconds']:.0f} s, plans of {build['plan bytes'] / 2**30:.2f} GiB"
    )


def show_steps(outcome: Outcome, context_len: int, console: Console) -> None:
    """Copies and generation steps."""
    if not outcome.get("steps"):
        return
    console.print(f"{outcome['compiler']}, {outcome['precision']}")
    console.print(f"copies on the device, read and written: {outcome['copy bytes/s'] / 1e9:.0f} GB/s")
    table = Table(
        "sequences", "step, ms", "tokens/s", "GB/s", "of copies", title=f"generation, contexts of {context_len}"
    )
    for num_seqs, step in outcome["steps"].items():
        share = f"{step['share of copy bandwidth']:.0%}"
        table.add_row(
            str(num_seqs), f"{step['ms']:.2f}", f"{step['tokens/s']:.0f}", f"{step['bytes/s'] / 1e9:.0f}", share
        )
    console.print(table)


def show_bursts(outcome: Outcome, args: argparse.Namespace, console: Console) -> None:
    """Both deployments, in turn, and how far their logits are apart."""
    if "parity" in outcome:
        console.print("parity with transformers:", outcome["parity"])
    summaries = {users: burst["summary"] for users, burst in outcome.get("bursts", {}).items() if "summary" in burst}
    if not summaries:
        return
    title = f"{args.prompt_tokens} tokens in, {args.output_tokens} out, all at once, {args.rounds} rounds in turn"
    table = Table("users", "figure", "median", "min", "max", title=title)
    for num_users, summary in summaries.items():
        for name, values in summary.items():
            table.add_row(str(num_users), name, *(f"{value:.2f}" if value < 10 else f"{value:.0f}" for value in values))
    console.print(table)


def show_bench(outcome: Outcome, console: Console) -> None:
    """Latencies at each number of users."""
    if "bench" not in outcome:
        return
    table = Table(
        "users", "TTFT p50", "TTFT p95", "ITL p50", "ITL p95", "tokens/s", "errors", title="trident bench, ms"
    )
    for stage in outcome["bench"]:
        metrics = stage["metrics"]
        row = [
            metrics[name][percentile]
            for name in ("time_to_first_token", "inter_token_latency")
            for percentile in ("p50", "p95")
        ]
        cells = (f"{value:.1f}" for value in (*row, stage["output_token_throughput"]))
        table.add_row(str(stage["load"]["users"]), *cells, str(sum(stage["errors"].values())))
    console.print(table)
