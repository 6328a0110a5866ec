"""docs/importing.md against the architectures that are imported."""

from __future__ import annotations

import re
from pathlib import Path

from tests.compiler.gguf.test_architectures import CASES
from trident_compiler.gguf.architectures.registry import ARCHITECTURES

ROOT = Path(__file__).parents[2]
SECTION = (ROOT / "docs" / "importing.md").read_text().split("## Architectures")[1].split("\n## ")[0]
ROWS = re.findall(r"^\| (`.*?) \| (.*) \|$", SECTION, re.MULTILINE)


def test_importing_page_names_every_architecture_and_no_other() -> None:
    named = [name for first, _ in ROWS[1:] for name in re.findall(r"`([\w-]+)`", first)]
    assert sorted(named) == sorted(ARCHITECTURES)


def test_importing_page_names_every_type_of_model_that_is_tested() -> None:
    named = {name for row in ROWS[1:] for cell in row for name in re.findall(r"`([\w-]+)`", cell)}
    assert {model_type for _, model_type, _ in CASES.values()} <= named
