"""Alerts fire when they must, stay silent when they must, and say where to read on."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.monitoring.expressions import FOLDER, PAGE, RULE_TESTS, RULES, alerts, page_expressions, rule_tests
from tests.programs import find, needs

ALERTS = alerts()


def promtool(*words: str, folder: Path = FOLDER) -> subprocess.CompletedProcess[str]:
    program = find("promtool")
    assert program is not None
    return subprocess.run([program, *words], cwd=folder, capture_output=True, text=True, timeout=300, check=False)


@needs("promtool", "prometheus")
def test_rules_are_valid() -> None:
    checked = promtool("check", "rules", *map(str, RULES))
    assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.slow
@needs("promtool", "prometheus")
@pytest.mark.parametrize("file", RULE_TESTS, ids=lambda file: file.stem)
def test_rules_fire_when_they_must_alone(file: Path) -> None:
    tested = promtool("test", "rules", file.name, folder=file.parent)
    assert tested.returncode == 0, tested.stdout + tested.stderr


@pytest.mark.parametrize("alert", sorted(ALERTS))
def test_rules_have_a_case_that_fires_and_one_that_does_not(alert: str) -> None:
    expected = [
        bool(one.get("exp_alerts"))
        for case in rule_tests()
        for one in case.get("alert_rule_test", ())
        if one["alertname"] == alert
    ]
    assert set(expected) == {True, False}


@pytest.mark.slow
@needs("promtool", "prometheus")
@pytest.mark.parametrize(("mutation", "sees"), [("vector(1) < 0", True), ("vector(1)", False)])
def test_rules_tests_notice_alerts_that_never_fire_and_that_always_do(
    mutation: str, sees: bool, tmp_path: Path
) -> None:
    """With each alert replaced, the case that expects the opposite fails."""
    shutil.copytree(FOLDER, tmp_path / "monitoring")
    for file in (tmp_path / "monitoring" / "rules").glob("*.yml"):
        text = re.sub(
            r"(- alert: \w+\n +expr:) (?:\|\n(?: {10}.*\n)+|.*\n)(?: +for: .*\n)?",
            rf"\1 {mutation}\n",
            file.read_text(),
        )
        # The ratios over days are what takes long, and nothing looks at them now.
        text = re.sub(r" +- record: trident:\w+:ratio_rate\w+\n +expr: \|\n(?: {10}.*\n)+\n", "", text)
        file.write_text(text)
    tested = promtool("test", "rules", *(file.name for file in RULE_TESTS), folder=tmp_path / "monitoring" / "tests")
    assert tested.returncode != 0
    wrong = set(
        re.findall(r"alertname: (\w+), time: \w+,\s+exp:\[" + (r"\n" if sees else r"\]"), tested.stdout + tested.stderr)
    )
    assert wrong == set(ALERTS)


@pytest.mark.parametrize("alert", sorted(ALERTS))
def test_rules_say_how_bad_it_is_and_where_to_read_on(alert: str) -> None:
    rule = ALERTS[alert]
    assert rule["labels"]["severity"] in {"critical", "warning"}
    assert sorted(rule["annotations"]) == ["description", "runbook", "summary"]
    assert rule["annotations"]["runbook"] == f"docs/operations.md#{alert.lower()}"


def test_rules_have_a_section_each_in_the_page_that_says_what_to_do() -> None:
    sections = re.findall(r"^### (Trident\w+)$(.*?)(?=^##)", PAGE.read_text(encoding="utf-8") + "\n##", re.M | re.S)
    assert [name for name, _ in sections] == list(dict.fromkeys(name for name, _ in sections))
    assert {name for name, _ in sections} == set(ALERTS)
    for name, text in sections:
        assert all(part in text for part in ("**Means**", "**Look at**", "**Do**")), name


@needs("promtool", "prometheus")
def test_rules_page_has_valid_queries(tmp_path: Path) -> None:
    queries = page_expressions()
    assert len(queries) > 10
    file = tmp_path / "page.yml"
    records = [{"record": f"page:{index}", "expr": one.promql} for index, one in enumerate(queries)]
    file.write_text(yaml.safe_dump({"groups": [{"name": "page", "rules": records}]}))
    checked = promtool("check", "rules", str(file))
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_rules_and_panels_in_the_page_are_there() -> None:
    """What the page calls by a name of ours exists."""
    text = PAGE.read_text(encoding="utf-8")
    named = set(re.findall(r"\btrident:[\w:]+\b", text))
    recorded = set(re.findall(r"record: (\S+)", "".join(file.read_text() for file in RULES)))
    assert named <= recorded
