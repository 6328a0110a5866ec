"""The documentation of errors against the contract itself; the e2e tests hold its other table to a running server."""

from __future__ import annotations

import re
from pathlib import Path

from trident_ensemble.contract.errors import REASONS

PAGE = Path(__file__).parents[2] / "docs" / "errors.md"


def test_errors_page_every_reason_is_explained_beside_its_code() -> None:
    rows = re.findall(r"^\| `(\w+)` \| `\[(\w+)\]` \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert dict(rows) == REASONS
