"""The table of the chart's values in docs/helm.md.

Owns how a value is written there: `python -m tests.kubernetes.helm_values_table` writes the table anew. Never a
description, which values.schema.json has.
"""

from __future__ import annotations

import json
import re
from typing import Any

from tests.kubernetes.charts import at, defaults, leaves
from tests.kubernetes.rendering import ROOT

PAGE = ROOT / "docs/helm.md"
_TABLE = re.compile(r"(?<=<!-- values -->\n\n).*?(?=\n\n<!-- end of values -->)", re.DOTALL)


def _default(value: Any) -> str:
    return "" if value == "" else f"`{json.dumps(value) if not isinstance(value, str) else value}`"


def values_table() -> str:
    """Return the table: each value's name, default and meaning, in the order of the schema."""
    lines = ["| value | default | meaning |", "|---|---|---|"]
    for path, said in leaves():
        if path != ("global",):
            lines.append(f"| `{'.'.join(path)}` | {_default(at(defaults(), path))} | {said['description']} |")
    return "\n".join(lines)


def table_of_page() -> str:
    """Return the table that the page has."""
    found = _TABLE.search(PAGE.read_text())
    assert found is not None, f"{PAGE}: has no table between its two comments"
    return found[0]


if __name__ == "__main__":
    table = values_table()
    PAGE.write_text(_TABLE.sub(lambda _: table, PAGE.read_text()))
