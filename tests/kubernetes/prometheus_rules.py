"""The rules of docker/monitoring as an object of Prometheus' operator.

Owns the copy that the component `monitoring` has, because kustomize reads no file outside of its folder:
`python -m tests.kubernetes.prometheus_rules` writes it. Never changes a rule.
"""

from __future__ import annotations

from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
RULES = ROOT / "docker/monitoring/rules"
COPY = ROOT / "docker/kubernetes/components/monitoring/prometheus-rules.yaml"
_HEAD = """\
# The rules of docker/monitoring/rules, all of them. Never edited: python -m tests.kubernetes.prometheus_rules writes it.
"""


class _Dumper(yaml.SafeDumper):
    """Writes a text of several lines as one reads it."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        """Indent lists, too."""
        return super().increase_indent(flow, False)


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)


def prometheus_rules() -> str:
    """Return the object with every group of rules, in the order of the files' names."""
    groups = [group for file in sorted(RULES.glob("*.yml")) for group in yaml.safe_load(file.read_text())["groups"]]
    names = {"app.kubernetes.io/name": "trident", "app.kubernetes.io/instance": "trident"}
    rule = {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "trident", "labels": names},
        "spec": {"groups": groups},
    }
    return _HEAD + yaml.dump(rule, Dumper=_Dumper, sort_keys=False, width=120)


if __name__ == "__main__":
    COPY.write_text(prometheus_rules())
