"""The outcome of a load as one self-contained HTML page.

Owns which plots there are and what they show. Never computes a figure and never draws: `page.html.jinja` does.
"""

from __future__ import annotations

from typing import Any

import jinja2
import numpy as np

from trident_tools.load.bench_report import Outcome, summary_columns, summary_row
from trident_tools.load.charts import Chart, Line, make_chart
from trident_tools.load.loads import ClosedLoop

_TEMPLATE = "page.html.jinja"


def render_page(outcome: Outcome) -> str:
    """Return the HTML of the page: the configuration, a table of the stages, and plots."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader(__package__, package_path=""), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    stages = outcome.stages
    return environment.get_template(_TEMPLATE).render(
        model=outcome.model,
        began=stages[0][0].began if stages else "",
        configuration={
            name: _words(value) for name, value in outcome.configuration.items() if value not in (None, [], {})
        },
        notes=outcome.notes,
        columns=summary_columns(stages),
        rows=[(str(result.load), summary_row(stages, figures)) for result, figures in stages],
        errors=[(str(result.load), dict(figures.errors)) for result, figures in stages if figures.errors],
        loads=[str(result.load) for result, _ in stages],
        groups=[
            ("Throughput against latency", False, _present(_tradeoffs(outcome))),
            ("Distributions", True, _present(_distributions(outcome))),
            ("Over time", True, _present(_timelines(outcome))),
        ],
    )


def _tradeoffs(outcome: Outcome) -> list[Chart | None]:
    """Return charts with a point for each stage, joined in order; a single stage gets none."""
    if len(outcome.stages) < 2:
        return []
    charts: list[Chart | None] = []
    for name, title in (("time_to_first_token", "TTFT p95"), ("inter_token_latency", "ITL p95")):
        points, labels = [], []
        for result, figures in outcome.stages:
            if name in figures.summaries:
                points.append((figures.output_token_throughput, figures.summaries[name].percentiles[95]))
                load = result.load
                labels.append(f"{load.num_users}" if isinstance(load, ClosedLoop) else f"{load.rate:g}/s")
        charts.append(make_chart(title, "output tokens/s", "ms", [Line("", tuple(points), tuple(labels))]))
    return charts


def _distributions(outcome: Outcome) -> list[Chart | None]:
    """Return charts of the share of requests at or below each latency."""
    charts: list[Chart | None] = []
    for name, title in (("time_to_first_token", "Time to first token"), ("inter_token_latency", "Inter-token latency")):
        lines = []
        for result, figures in outcome.stages:
            curve = figures.curves.get(name, ())
            shares = np.linspace(0, 100, len(curve)) if len(curve) > 1 else np.full(len(curve), 100.0)
            lines.append(Line(str(result.load), tuple(zip(curve, shares.tolist(), strict=True))))
        charts.append(make_chart(title, "ms", "% of requests", lines))
    return charts


def _timelines(outcome: Outcome) -> list[Chart | None]:
    """Return charts of each stage over time from its own beginning, including the ramp."""
    lines = [
        Line(str(result.load), tuple((second + 0.5, count) for second, count in enumerate(figures.timeline)))
        for result, figures in outcome.stages
    ]
    return [make_chart("Throughput", "s from the stage's beginning, ramp included", "output tokens/s", lines)]


def _words(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name}={_words(each)}" for name, each in value.items())
    return ", ".join(map(_words, value)) if isinstance(value, list) else str(value)


def _present(charts: list[Chart | None]) -> list[Chart]:
    return [chart for chart in charts if chart is not None]
