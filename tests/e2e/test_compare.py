"""`make bench` once, as small as it gets."""

from __future__ import annotations

import json
from pathlib import Path

from tests.benchmarks import compare


def test_compare_one_sequence_is_measured_in_all_three(tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    compare.main(
        [
            "--rounds", "1", "--sequences", "1", "--prompt-tokens", "8", "--output-tokens", "4", "--layers", "1",
            "--json", str(figures),
        ]
    )  # fmt: skip
    written = json.loads(figures.read_text(encoding="utf-8"))
    assert len(written["rounds"]) == 1
    assert all(median > 0 for median, _, _ in written["figures"].values())
    assert {name[:3] for name in written["figures"]} >= {"(a)", "(b)", "(c)"}
