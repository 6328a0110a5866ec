"""The page about a release, and the earlier state that a release is compared with."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.benchmarks.commands import BenchmarkError
from tests.release.figures import FILE, PROMPTS, TEXT, read_figures, write_figures
from tests.release.gates import Verdict
from tests.release.installation import head, installation_of
from tests.release.page import Compared, render_page

COMPARED = Compared("this", "0.1.0", "2 cores", "2026-11-29")


def test_page_says_first_whether_it_may_be_released() -> None:
    good = Verdict("demo: perplexity", "1", "2", has_passed=True)
    page = render_page(COMPARED, [good], [good], [])
    assert "**May be released**: all 2 gates have passed." in page
    bad = Verdict("demo: output tokens/s", "0.5", "at least 0.95", has_passed=False)
    page = render_page(COMPARED, [good], [bad], ["a remark"])
    assert "**Not to be released**: 1 of 2 gates have failed." in page
    assert "| demo: output tokens/s | 0.5 | at least 0.95 | **failed** |" in page
    assert "- a remark" in page


def test_figures_of_the_last_release_are_whole(tmp_path: Path) -> None:
    figures = read_figures()
    assert figures.revision
    assert {"trident-demo fp32", "trident-demo int8"} <= figures.quality.keys()
    assert TEXT.stat().st_size > 10_000
    assert PROMPTS.exists()
    write_figures(figures, tmp_path / "again.json")
    assert (tmp_path / "again.json").read_text(encoding="utf-8") == FILE.read_text(encoding="utf-8")


@pytest.mark.skipif(not head(), reason="this is no git repository")
def test_installation_of_a_revision_runs_its_own_code(tmp_path: Path) -> None:
    installation = installation_of("HEAD", tmp_path)
    code = "import trident_tools.main as m, trident_ensemble as e, numpy; print(m.__file__, e.__file__)"
    done = subprocess.run([installation.python, "-c", code], capture_output=True, text=True, check=True, cwd="/")
    assert all(path.startswith(str(tmp_path)) for path in done.stdout.split())


def test_installation_of_an_unknown_revision_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError, match="--against no-such-revision"):
        installation_of("no-such-revision", tmp_path)
