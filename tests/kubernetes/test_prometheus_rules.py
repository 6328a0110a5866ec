"""The copy of the rules that the component `monitoring` has."""

from __future__ import annotations

from tests.kubernetes.prometheus_rules import COPY, prometheus_rules


def test_prometheus_rules_of_the_component_are_those_of_docker_monitoring() -> None:
    assert COPY.read_text() == prometheus_rules(), "run: python -m tests.kubernetes.prometheus_rules"
