"""Rules and panels as the tests read them, and what their PromQL selects.

Owns where those files lie, and how metrics and labels are found in an expression. Never evaluates one: Prometheus does.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).parents[2] / "docker" / "monitoring"
PAGE = FOLDER.parents[1] / "docs" / "operations.md"
RULES = sorted((FOLDER / "rules").glob("*.yml"))
RULE_TESTS = sorted((FOLDER / "tests").glob("*.yml"))
#: Labels that Prometheus gives a series by its target, so that no page has them.
TARGET_LABELS = frozenset({"namespace", "pod", "instance", "job"})

_SELECTOR = re.compile(r"\b((?:trident[_:]|nv_)[\w:]+|up|ALERTS)\b\s*(?:\{([^}]*)\})?")
_MATCHER = re.compile(r'(\w+)\s*(=~|!~|!=|=)\s*"((?:[^"\\]|\\.)*)"')
_GROUPING = re.compile(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\(([^)]*)\)")


@dataclass(frozen=True)
class Expression:
    """One expression and where it stands."""

    name: str
    promql: str


@dataclass(frozen=True)
class Selector:
    """A metric, and what its labels must be: (label, operator, value)."""

    metric: str
    matchers: tuple[tuple[str, str, str], ...]

    def selects(self, labels: dict[str, str]) -> bool:
        """Return whether it takes a series of its metric; labels of targets are not looked at."""
        return all(
            self._holds(operator, labels.get(label, ""), wanted)
            for label, operator, wanted in self.matchers
            if label not in TARGET_LABELS
        )

    @staticmethod
    def _holds(operator: str, value: str, wanted: str) -> bool:
        is_equal = re.fullmatch(wanted, value) is not None if "~" in operator else value == wanted
        return is_equal != operator.startswith("!")


@dataclass(frozen=True)
class Sample:
    """One line of a page of metrics."""

    metric: str
    labels: dict[str, str]
    value: float


def rules() -> list[dict[str, Any]]:
    """Return every rule of every file."""
    return [rule for file in RULES for group in _read(file)["groups"] for rule in group["rules"]]


def alerts() -> dict[str, dict[str, Any]]:
    """Return the rules that alert, by their names."""
    return {rule["alert"]: rule for rule in rules() if "alert" in rule}


def rule_tests() -> Iterator[dict[str, Any]]:
    """Yield each case of promtool's tests."""
    for file in RULE_TESTS:
        yield from _read(file)["tests"]


def rule_expressions() -> list[Expression]:
    """Return the expressions of all rules."""
    return [Expression(rule.get("alert") or rule["record"], rule["expr"]) for rule in rules()]


def panel_expressions(**chosen: str) -> list[Expression]:
    """Return the expressions of all panels, as Grafana asks them.

    Args:
        chosen: the value of a variable that is not everything.
    """
    return [
        Expression(f"{row['row']}: {panel['title']}: {query['legend']}", with_values(query["expr"].strip(), **chosen))
        for row in _read(FOLDER / "panels.yml")
        for panel in row["panels"]
        for query in panel["queries"]
    ]


def page_expressions() -> list[Expression]:
    """Return the queries that docs/operations.md tells to look at: each line of a block without a language."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.M | re.S)
    return [Expression(line, line) for language, text in blocks if not language for line in text.splitlines()]


def with_values(promql: str, **chosen: str) -> str:
    """Return an expression of a panel with the values of variables: everything, where nothing else is chosen."""
    values = {"namespace": ".*", "model": ".*", "core": ".*", "__rate_interval": "1m", **chosen}
    return re.sub(r"\$(\w+)", lambda found: values[found[1]], promql)


def selectors(promql: str) -> list[Selector]:
    """Return what an expression selects."""
    return [Selector(metric, tuple(_MATCHER.findall(matchers))) for metric, matchers in _SELECTOR.findall(promql)]


def grouping_labels(promql: str) -> set[str]:
    """Return the labels by which an expression groups or matches."""
    lists: Iterable[str] = _GROUPING.findall(promql)
    return {label for one in lists for label in re.findall(r"\w+", one)}


def read_page(text: str) -> tuple[list[Sample], set[str]]:
    """Return the samples of a page, and the families that it declares, also those without a sample."""
    samples = []
    for metric, labels, value in re.findall(r"^(\w+)(?:\{(.*)\})? (\S+)$", text, re.MULTILINE):
        pairs = re.findall(r'(\w+)="((?:[^"\\]|\\.)*)"', labels)
        samples.append(Sample(metric, dict(pairs), float(value)))
    return samples, set(re.findall(r"^# TYPE (\w+) ", text, re.MULTILINE))


@cache
def _read(file: Path) -> Any:
    return yaml.safe_load(file.read_text(encoding="utf-8"))
