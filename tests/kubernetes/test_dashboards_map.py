"""The ConfigMap of the dashboards."""

from __future__ import annotations

import subprocess

import kubernetes_validate
import yaml

from tests.kubernetes.rendering import NEWEST_VERSION, OLDEST_VERSION, ROOT
from tests.programs import needs

FOLDER = ROOT / "docker/monitoring/dashboards"
pytestmark = needs("kubectl", "Kubernetes' own packages, which have it as kubectl")


def test_dashboards_map_has_every_dashboard_and_the_label_that_grafana_looks_for() -> None:
    done = subprocess.run(["kubectl", "kustomize", str(FOLDER)], check=True, capture_output=True, text=True, timeout=60)
    one = yaml.safe_load(done.stdout)
    for version in (OLDEST_VERSION, NEWEST_VERSION):
        kubernetes_validate.validate(one, version, strict=True)
    assert one["data"] == {file.name: file.read_text() for file in FOLDER.glob("*.json")}
    assert one["metadata"]["namespace"] == "monitoring"
    assert one["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert len(done.stdout) < 256 << 10, "`kubectl apply` keeps what it has applied in an annotation"
