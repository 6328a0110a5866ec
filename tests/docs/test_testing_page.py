"""The tests' own documentation against the tree."""

from __future__ import annotations

import re
from pathlib import Path

FAKES = Path(__file__).parents[1] / "fakes"


def test_testing_page_every_double_has_a_row() -> None:
    rows = re.findall(r"^\| `(\w+)` \|", (FAKES / "README.md").read_text(), re.MULTILINE)
    modules = {path.stem for path in FAKES.glob("*.py")} - {"__init__"}
    assert sorted(modules) == rows
