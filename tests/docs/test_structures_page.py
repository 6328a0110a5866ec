"""docs/structures.md against the tree."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "structures.md").read_text()
NAMED = re.findall(r"`((?:ensemble|preprocessing|backend|postprocessing|tools)/[\w/.]+)`", PAGE)
PACKAGES = [folder for folder in ROOT.glob("*/trident_*") if (folder / "__init__.py").exists()]


@pytest.mark.parametrize("path", sorted(set(NAMED)))
def test_structures_page_names_what_is_there(path: str) -> None:
    assert (ROOT / path).is_dir() if path.endswith("/") else (ROOT / path).is_file()


@pytest.mark.parametrize("package", PACKAGES, ids=lambda folder: folder.name)
def test_structures_page_names_every_room(package: Path) -> None:
    rooms = {f"{folder.relative_to(ROOT)}/" for folder in package.iterdir() if (folder / "__init__.py").exists()}
    assert not rooms - set(NAMED)


def test_structures_page_follows_a_request_through_every_room_that_a_token_passes() -> None:
    steps = PAGE.split("## One request")[1].split("\n## ")[0]
    passed = {"serving", "scheduling", "sampling", "guided", "kv", "requests", "sequences", "engine"}
    assert passed == {room for room in passed if f"backend/trident_backend/{room}/" in steps}


def test_structures_page_readme_is_short_and_leads_to_every_page() -> None:
    readme = (ROOT / "README.md").read_text()
    assert len(readme.splitlines()) <= 180
    assert {f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md")} <= set(re.findall(r"docs/\w+\.md", readme))


def test_structures_page_links_between_pages_lead_somewhere() -> None:
    for page in [ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)(?:#[\w-]+)?\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
