"""Writes Grafana's dashboard from the table of panels.

Owns how the dashboard looks: its variables, the grid, the kind of its panels. Never a query: those are in panels.yml.

Run it as `python docker/monitoring/dashboards.py` after a change of panels.yml. It needs grafana-foundation-sdk, PyYAML
and Python 3.11.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from grafana_foundation_sdk.builders import common, dashboard, prometheus, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import LegendDisplayMode, LegendPlacement, TooltipDisplayMode
from grafana_foundation_sdk.models.dashboard import DashboardCursorSync, DataSourceRef, VariableRefresh

HERE = Path(__file__).parent
SOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")
#: Of the 24 columns: three panels in a line.
WIDTH, HEIGHT = 8, 8


@dataclass(frozen=True)
class Query:
    """One query of a panel.

    Args:
        expr: in PromQL, with the dashboard's variables.
        legend: names each of its series by their labels.
    """

    expr: str
    legend: str


@dataclass(frozen=True)
class Panel:
    """One panel.

    Args:
        title: says what is shown.
        description: is shown where the pointer rests.
        unit: as Grafana names it.
        queries: what is drawn.
    """

    title: str
    description: str
    unit: str
    queries: tuple[Query, ...]


@dataclass(frozen=True)
class Row:
    """Panels about one subject."""

    title: str
    panels: tuple[Panel, ...]


def read_rows(text: str) -> tuple[Row, ...]:
    """Return the rows of a table of panels.

    Raises:
        TypeError: a panel or a query has a key too many or too few.
    """
    return tuple(Row(row["row"], tuple(map(_panel, row["panels"]))) for row in yaml.safe_load(text))


def render(rows: tuple[Row, ...]) -> str:
    """Return the dashboard as JSON, the same for the same rows."""
    board = (
        dashboard.Dashboard("Trident")
        .uid("trident")
        .description("What users see, what engines do, who uses them, and how a rollout goes")
        .tags(["trident"])
        .readonly()
        .refresh("30s")
        .time("now-3h", "now")
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .with_variable(dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus"))
        .with_variable(_variable("namespace", "Namespace", "label_values(trident_gateway_inflight, namespace)"))
        .with_variable(_variable("model", "Model", "label_values(trident_gateway_requests_total, model)"))
        .with_variable(_variable("core", "Core", "label_values(nv_trt_llm_request_metrics, model)"))
        .annotation(
            dashboard.AnnotationQuery()
            .name("Alerts")
            .datasource(SOURCE)
            .enable(True)
            .icon_color("red")
            .expr('ALERTS{alertname=~"Trident.*", alertstate="firing"}')
        )
    )
    number = 0
    for row in rows:
        number += 1
        board.with_row(dashboard.Row(row.title).id(number))
        for panel in row.panels:
            number += 1
            board.with_panel(_graph(panel).id(number))
    return JSONEncoder(sort_keys=True, indent=2).encode(board.build()) + "\n"


def main() -> None:
    """Write the dashboard, or refuse with exit status 1 where `--check` finds another one."""
    parser = argparse.ArgumentParser(description="Write dashboards/trident.json from panels.yml.")
    parser.add_argument("--check", action="store_true", help="change nothing, and fail if the file is not up to date")
    arguments = parser.parse_args()
    target = HERE / "dashboards" / "trident.json"
    text = render(read_rows((HERE / "panels.yml").read_text(encoding="utf-8")))
    if arguments.check:
        if not target.is_file() or target.read_text(encoding="utf-8") != text:
            parser.exit(1, f"{target} is not what panels.yml says: run python docker/monitoring/dashboards.py\n")
        return
    target.parent.mkdir(exist_ok=True)
    target.write_text(text, encoding="utf-8")


def _panel(fields: dict[str, Any]) -> Panel:
    queries = tuple(Query(query["expr"].strip(), query["legend"]) for query in fields["queries"])
    return Panel(**{**fields, "queries": queries})


def _variable(name: str, label: str, query: str) -> dashboard.QueryVariable:
    """Return a choice among the values of a label; all of them also where nothing has the label."""
    return (
        dashboard.QueryVariable(name)
        .label(label)
        .datasource(SOURCE)
        .query(query)
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        .multi(True)
        .include_all(True)
        .all_value(".*")
    )


def _graph(panel: Panel) -> timeseries.Panel:
    graph = (
        timeseries.Panel()
        .title(panel.title)
        .description(panel.description)
        .unit(panel.unit)
        .datasource(SOURCE)
        .span(WIDTH)
        .height(HEIGHT)
        .min(0)
        .legend(
            common.VizLegendOptions()
            .display_mode(LegendDisplayMode.LIST)
            .placement(LegendPlacement.BOTTOM)
            .show_legend(True)
        )
        .tooltip(common.VizTooltipOptions().mode(TooltipDisplayMode.MULTI))
    )
    for place, query in enumerate(panel.queries):
        graph.with_target(
            prometheus.Dataquery().expr(query.expr).legend_format(query.legend).ref_id(chr(ord("A") + place)).range()
        )
    return graph


if __name__ == "__main__":
    main()
