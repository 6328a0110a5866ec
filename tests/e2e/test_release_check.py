"""The release gate in its small form: the demo model, a few rounds against the last release's engine."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.release.__main__ import main
from tests.release.installation import head


@pytest.mark.skipif(not head(), reason="this is no git repository")
def test_release_check_passes_and_writes_its_page(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    # Three short rounds on a busy machine tell no more than that nothing became twice as slow.
    status = main(["--demo-only", "--rounds", "3", "--slack", "1.0", "--page", str(page)])
    text = page.read_text(encoding="utf-8")
    assert status == 0, text
    assert "**May be released**" in text
    assert text.count("| passed |") >= 8
