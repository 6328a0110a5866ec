"""The dashboard that is checked in is what its table says, and can be imported as it is."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from typing import Any

import pytest

from tests.monitoring.expressions import FOLDER, panel_expressions, with_values
from tests.programs import find, needs

DASHBOARD = json.loads((FOLDER / "dashboards" / "trident.json").read_text(encoding="utf-8"))
PANELS: list[dict[str, Any]] = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
needs_builder = pytest.mark.skipif(
    sys.version_info < (3, 11) or importlib.util.find_spec("grafana_foundation_sdk") is None,
    reason="grafana-foundation-sdk is missing; it needs Python 3.11",
)


@needs_builder
def test_dashboards_are_what_their_table_says() -> None:
    command = [sys.executable, str(FOLDER / "dashboards.py"), "--check"]
    checked = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert checked.returncode == 0, checked.stderr


def test_dashboards_show_every_query_of_the_table() -> None:
    """Read without the library that wrote it."""
    shown = [target["expr"] for panel in PANELS for target in panel["targets"]]
    assert [with_values(expr) for expr in shown] == [one.promql for one in panel_expressions()]


def test_dashboards_belong_to_no_one_prometheus() -> None:
    """Every panel and variable asks the data source that is chosen; so the file is imported without an edit."""
    variables = {one["name"]: one for one in DASHBOARD["templating"]["list"]}
    assert list(variables) == ["datasource", "namespace", "model", "core"]
    assert variables["datasource"]["query"] == "prometheus"
    for one in (*PANELS, *(variables[name] for name in ("namespace", "model", "core"))):
        assert one["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    # All namespaces are chosen also where a plain Prometheus gives series none.
    assert {variables[name]["allValue"] for name in ("namespace", "model", "core")} == {".*"}
    used = set(re.findall(r"\$(\w+)", json.dumps([panel["targets"] for panel in PANELS]))) - {"__rate_interval"}
    assert used == {"namespace", "model", "core"}


def test_dashboards_have_rows_of_panels_that_do_not_overlap() -> None:
    rows = [panel["title"] for panel in DASHBOARD["panels"] if panel["type"] == "row"]
    assert rows == ["Users", "Engine", "Tenants", "Gateways, servers and rollouts"]
    cells = [
        (x, y)
        for panel in DASHBOARD["panels"]
        for grid in [panel["gridPos"]]
        for x in range(grid["x"], grid["x"] + grid["w"])
        for y in range(grid["y"], grid["y"] + grid["h"])
    ]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) == 23
    numbers = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(numbers) == len(set(numbers))
    assert all(panel["description"] and panel["fieldConfig"]["defaults"]["unit"] for panel in PANELS)


@needs("promtool", "prometheus")
def test_dashboards_have_valid_queries(tmp_path: Any) -> None:
    records = [
        f"      - record: panel:{index}\n        expr: {json.dumps(one.promql)}\n"
        for index, one in enumerate(panel_expressions())
    ]
    file = tmp_path / "panels.yml"
    file.write_text("groups:\n  - name: panels\n    rules:\n" + "".join(records), encoding="utf-8")
    program = find("promtool")
    assert program is not None
    command = [program, "check", "rules", str(file)]
    checked = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr
