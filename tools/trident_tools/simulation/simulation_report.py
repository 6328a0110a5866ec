"""The figures of simulated loads, as tables for people and as JSON for programs.

Owns the columns and the form of the JSON. Never computes a figure.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from trident_ensemble.contract.errors import TridentError
from trident_tools.load.loads import ClosedLoop, Load
from trident_tools.load.output_files import replace_file
from trident_tools.simulation.figures import SimulatedFigures, Spread


def print_tables(console: Console, rows: list[tuple[Load, SimulatedFigures]]) -> None:
    """Print tables with a row for each load: what users experience, what is served, and what it costs."""
    loads = [f"{value:g}" for load, _ in rows for value in _load(load).values()]
    name = "users" if isinstance(rows[0][0], ClosedLoop) else "sent/s"
    for title, columns in _TABLES.items():
        table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
        table.add_column(name, justify="right", no_wrap=True)
        for column in columns:
            table.add_column(column, justify="right", no_wrap=True)
        for load, (_, figures) in zip(loads, rows, strict=True):
            table.add_row(load, *(show(figures) for show in columns.values()))
        console.print(table)


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.0f}" if value >= 1000 else f"{value:.3g}"


def _percentiles(
    name: str, latency: Callable[[SimulatedFigures], Spread]
) -> dict[str, Callable[[SimulatedFigures], str]]:
    return {
        f"{name}\np50": lambda figures: _number(latency(figures).p50),
        f"{name}\np95": lambda figures: _number(latency(figures).p95),
        f"{name}\np99": lambda figures: _number(latency(figures).p99),
    }


_TABLES: dict[str, dict[str, Callable[[SimulatedFigures], str]]] = {
    "Latency, ms": {
        **_percentiles("TTFT", lambda figures: figures.time_to_first_token),
        **_percentiles("ITL", lambda figures: figures.inter_token_latency),
        **_percentiles("request", lambda figures: figures.request_latency),
    },
    "Throughput": {
        "served/s": lambda figures: _number(figures.request_throughput),
        "refused": lambda figures: str(figures.num_refused),
        "output\ntokens/s": lambda figures: _number(figures.output_token_throughput),
        "all\ntokens/s": lambda figures: _number(figures.total_token_throughput),
        "busy": lambda figures: f"{figures.utilization:.0%}",
        "cost/M\noutput": lambda figures: _number(figures.cost_per_million_output_tokens),
        "cost/M\nall": lambda figures: _number(figures.cost_per_million_tokens),
    },
    "Each replica": {
        "running": lambda figures: _number(figures.num_running),
        "waiting": lambda figures: _number(figures.num_waiting),
        "queue\nms": lambda figures: _number(figures.queue_time.avg),
        "tokens\na step": lambda figures: _number(figures.step_tokens),
        "KV use\navg": lambda figures: f"{figures.kv_use:.0%}",
        "KV use\nmax": lambda figures: f"{figures.kv_use_max:.0%}",
        "prefix\nhits": lambda figures: f"{figures.prefix_hit_rate:.0%}",
        "pre-\nempted": lambda figures: str(figures.num_preemptions),
    },
}


def _load(load: Load) -> dict[str, float]:
    return {"users": load.num_users} if isinstance(load, ClosedLoop) else {"rate": load.rate}


def _stage(load: Load, figures: SimulatedFigures) -> dict[str, Any]:
    values = asdict(figures)
    latencies = {name: values.pop(name) for name in list(values) if isinstance(values[name], dict)}
    metrics = {name: {"unit": "ms", **spread} for name, spread in latencies.items()}
    return {"load": _load(load), "metrics": metrics, **values}


def write_json(path: Path, configuration: Mapping[str, Any], rows: list[tuple[Load, SimulatedFigures]]) -> None:
    """Replace a file with the figures as JSON.

    Args:
        path: path of the file.
        configuration: the description of what was simulated.
        rows: each becomes one of `stages`, in the form of a benchmark's JSON.

    Raises:
        TridentError: the file cannot be written.
    """
    stages = [_stage(load, figures) for load, figures in rows]
    text = json.dumps({"configuration": configuration, "stages": stages}, indent=2) + "\n"
    try:
        replace_file(path, text)
    except OSError as error:
        raise TridentError(f"--json: {path} cannot be written: {error}") from None
