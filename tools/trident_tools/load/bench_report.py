"""The outcome of a load, as tables and as JSON.

Owns the form of both. Never computes a figure and never prints. The JSON is:

    {"format": 1, "configuration": {option: value}, "model": name, "interrupted": bool, "notes": [text],
     "stages": [{"load": {"users": N} or {"rate": R}, "began": ISO 8601, "window": {"begin_s", "end_s"},
                 "requests", "errors": {kind: count}, "metrics": {name: {"unit", "avg", "p50", ..., "min", "max"}},
                 "output_token_throughput", "request_throughput", "goodput", "timeline", "client": {...},
                 "server": {"counters": {series: difference}, "histograms": {series: {"sum", "count", "mean"}},
                            "gauges": {series: value at the end}} or null,
                 "records": [...] if asked for}]}

Times are seconds from the stage's beginning unless the name or unit says otherwise.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from trident_tools.load.client_records import ClientRequestRecord
from trident_tools.load.loads import ClosedLoop
from trident_tools.load.stage_result import StageResult
from trident_tools.load.statistics import DISTRIBUTIONS, PERCENTILES, StageFigures, Summary

FORMAT = 1
_BUSY_SHARE = 0.9
_LATE_MS = 50.0


@dataclass(frozen=True)
class Outcome:
    """Everything that a report is made of.

    Args:
        configuration: the options of the command.
        model: the model that was asked.
        notes: notes for the reader on the whole load.
        stages: the course and the figures of each stage, in order.
    """

    configuration: dict[str, Any]
    model: str
    notes: tuple[str, ...]
    stages: tuple[tuple[StageResult, StageFigures], ...]

    @property
    def interrupted(self) -> bool:
        """Whether the load was ended early."""
        return any(result.interrupted for result, _ in self.stages)


def stage_table(result: StageResult, figures: StageFigures) -> RenderableType:
    """Return a table of one stage: a row for each metric, then its errors."""
    table = Table(title=f"{result.load}, {result.window.seconds:.1f} s", box=box.SIMPLE, title_justify="left")
    table.add_column("metric", no_wrap=True)
    for name in ("avg", *(f"p{number}" for number in PERCENTILES), "min", "max"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, unit in DISTRIBUTIONS.items():
        if name in figures.summaries:
            table.add_row(f"{name} ({unit})", *map(_number, _values(figures.summaries[name]).values()))
    table.add_section()
    for name, unit, value in throughputs(figures):
        table.add_row(f"{name} ({unit})", _number(value))
    table.add_row("requests", f"{figures.num_requests:,}")
    table.add_row("errors", f"{figures.num_errors:,}")
    kinds = (Text(f"  {count:,} x {kind}") for kind, count in figures.errors.items())
    return Group(table, *kinds)


def summary_table(stages: Sequence[tuple[StageResult, StageFigures]]) -> RenderableType:
    """Return a table of all stages, a row for each."""
    table = Table(box=box.SIMPLE)
    table.add_column("load", no_wrap=True)
    for name in summary_columns(stages):
        table.add_column(name, justify="right", overflow="fold")
    for result, figures in stages:
        table.add_row(str(result.load), *summary_row(stages, figures))
    return table


def summary_columns(stages: Sequence[tuple[StageResult, StageFigures]]) -> list[str]:
    """Return the headings of the summary's columns after that of the load."""
    has_goodput = any(figures.goodput is not None for _, figures in stages)
    return [
        "TTFT p50 (ms)", "TTFT p95 (ms)", "ITL p50 (ms)", "ITL p95 (ms)", "latency p95 (ms)", "tokens/s",
        "tokens/s a user", "requests/s", *(["goodput"] if has_goodput else []), "requests", "errors",
    ]  # fmt: skip


def summary_row(stages: Sequence[tuple[StageResult, StageFigures]], figures: StageFigures) -> list[str]:
    """Return the values of one stage for `summary_columns`."""

    def percentile(name: str, number: int) -> str:
        summary = figures.summaries.get(name)
        return "-" if summary is None else _number(summary.percentiles[number])

    goodput = ["-" if figures.goodput is None else _number(figures.goodput)]
    return [
        percentile("time_to_first_token", 50),
        percentile("time_to_first_token", 95),
        percentile("inter_token_latency", 50),
        percentile("inter_token_latency", 95),
        percentile("request_latency", 95),
        _number(figures.output_token_throughput),
        percentile("output_token_throughput_per_user", 50),
        _number(figures.request_throughput),
        *(goodput if "goodput" in summary_columns(stages) else []),
        f"{figures.num_requests:,}",
        f"{figures.num_errors:,}",
    ]


def throughputs(figures: StageFigures) -> list[tuple[str, str, float]]:
    """Return name, unit and value of each throughput."""
    rows = [
        ("output_token_throughput", "tokens/s", figures.output_token_throughput),
        ("request_throughput", "requests/s", figures.request_throughput),
    ]
    return rows if figures.goodput is None else [*rows, ("goodput", "requests/s", figures.goodput)]


def send_lag_ms(result: StageResult) -> float:
    """Return the 99th percentile of how late requests that count were sent, in milliseconds; 0 without any."""
    lags = [record.sent_at - record.scheduled_at for record in result.records if record.scheduled_at in result.window]
    return float(np.percentile(lags, 99)) * 1000 if lags else 0.0


def stage_notes(result: StageResult, figures: StageFigures) -> list[str]:
    """Return what a reader must know before believing the figures of a stage."""
    notes = []
    if result.cpu_share > _BUSY_SHARE:
        notes.append(f"{result.load}: this client used {result.cpu_share:.0%} of a core and may be the bottleneck")
    if (lag := send_lag_ms(result)) > _LATE_MS:
        notes.append(f"{result.load}: this client sent 1 % of the requests more than {lag:.0f} ms late")
    if not figures.num_requests and not figures.num_errors and not result.interrupted:
        notes.append(
            f"{result.load}: no request began in the {result.window.seconds:.1f} s that were measured; raise --duration"
        )
    if figures.num_requests and "output_sequence_length" not in figures.summaries:
        notes.append(f"{result.load}: the server does not say how many tokens it counts; what needs them is missing")
    if result.interrupted:
        notes.append(f"{result.load}: interrupted; requests under way then do not count")
    return notes


def render_json(outcome: Outcome, with_records: bool) -> str:
    """Return the whole outcome as JSON, in the form that the module's docstring describes."""
    return json.dumps(
        {
            "format": FORMAT,
            "configuration": outcome.configuration,
            "model": outcome.model,
            "interrupted": outcome.interrupted,
            "notes": outcome.notes,
            "stages": [_stage(result, figures, with_records) for result, figures in outcome.stages],
        },
        indent=1,
    )


def _stage(result: StageResult, figures: StageFigures, with_records: bool) -> dict[str, Any]:
    load = result.load
    stage: dict[str, Any] = {
        "load": {"users": load.num_users} if isinstance(load, ClosedLoop) else {"rate": load.rate},
        "began": result.began,
        "window": {
            "begin_s": result.window.begin - result.started_at,
            "end_s": result.window.end - result.started_at,
        },
        "requests": figures.num_requests,
        "errors": figures.errors,
        "metrics": {
            name: {"unit": DISTRIBUTIONS[name], **_values(summary)} for name, summary in figures.summaries.items()
        },
        "output_token_throughput": figures.output_token_throughput,
        "request_throughput": figures.request_throughput,
        "goodput": figures.goodput,
        "timeline": figures.timeline,
        "client": {"cpu_share": result.cpu_share, "send_lag_p99_ms": send_lag_ms(result)},
        "server": result.server,
    }
    if with_records:
        stage["records"] = [_record(result, record) for record in result.records]
    return stage


def _record(result: StageResult, record: ClientRequestRecord) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "scheduled_at_s": round(record.scheduled_at - result.started_at, 6),
        "sent_at_s": round(record.sent_at - result.started_at, 6),
        "counts": record.scheduled_at in result.window,
    }
    if record.error:
        return {**entry, "error": record.error}
    token_latency = record.inter_token_latency
    return {
        **entry,
        "time_to_first_token_ms": round(record.time_to_first_token * 1000, 3),
        "inter_token_latency_ms": None if token_latency is None else round(token_latency * 1000, 4),
        "request_latency_ms": round(record.request_latency * 1000, 3),
        "num_chunks": len(record.chunk_times),
        "num_input_tokens": record.num_input_tokens,
        "num_output_tokens": record.num_output_tokens,
        "finish_reason": record.finish_reason,
    }


def _values(summary: Summary) -> dict[str, float]:
    """Return a distribution's numbers in the order of the table's columns."""
    percentiles = {f"p{number}": value for number, value in summary.percentiles.items()}
    return {"avg": summary.avg, **percentiles, "min": summary.min, "max": summary.max}


def _number(value: float) -> str:
    """Write a number with at least three significant digits; thousands are rounded to whole numbers."""
    size = abs(value)
    if size >= 1000:
        return f"{value:,.0f}"
    return f"{value:.1f}" if size >= 100 else f"{value:.2f}"
