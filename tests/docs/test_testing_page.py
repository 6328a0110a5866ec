"""The tests' own documentation against the tree."""

from __future__ import annotations

import re
from pathlib import Path

FAKES = Path(__file__).parents[1] / "fakes"


def test_testing_page_every_double_has_a_row() -> None:
    rows = re.findall(r"^\| `(\w+)` \|", (FAKES / "README.md").read_text(), re.MULTILINE)
    modules = {path.stem for path in FAKES.glob("*.py")} - {"__init__"}
    assert sorted(modules) == rows


def test_testing_page_every_test_of_the_mark_e2e_lies_in_its_folder() -> None:
    """`make test` runs them by the folder, one after another."""
    tests = FAKES.parent
    marked = {
        path.relative_to(tests).as_posix()
        for path in tests.rglob("*.py")
        if "node_modules" not in path.parts and re.search(r"pytest\.mark\.e2e\b", path.read_text(encoding="utf-8"))
    }
    assert not marked
