"""docs/families.md against the registry of families and the engines' refusals."""

from __future__ import annotations

from pathlib import Path

from trident_tools.families import markdown, supported

PAGE = (Path(__file__).parents[2] / "docs" / "families.md").read_text(encoding="utf-8")


def test_families_page_has_the_table_that_the_command_prints() -> None:
    """After a change: `trident families --format markdown` prints what must stand there."""
    heading, _, rest = PAGE.partition("## What is served")[2].partition("| `model_type`")
    assert "trident families --format markdown" in heading
    assert f"| `model_type`{rest.partition(chr(10) * 2)[0]}".rstrip() == markdown(supported()).rstrip()
