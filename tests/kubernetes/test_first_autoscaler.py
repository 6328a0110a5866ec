"""kubectl itself goes from a fixed number of servers to an autoscaler, by what the page says, and no server is lost."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kubernetes.cluster_api import ClusterApi, running_cluster
from tests.kubernetes.rendering import ROOT, named
from tests.programs import needs

pytestmark = needs("kubectl", "Kubernetes' own packages, which have it as kubectl")
changes = pytest.mark.parametrize(
    ("before", "after"), [("gpu", "hpa"), ("gpu", "keda"), ("monitoring", "argo-rollouts")]
)


class Shell:
    """A shell whose kubectl speaks with a cluster.

    Args:
        cluster: the double that kubectl speaks with.
        folder: an empty folder for the program and its cache.
    """

    def __init__(self, cluster: ClusterApi, folder: Path) -> None:
        self.cluster = cluster
        program = folder / "kubectl"
        program.write_text(f'#!/bin/sh\nexec {shutil.which("kubectl")} --server {cluster.url} "$@"\n')
        program.chmod(0o755)
        kept = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
        self._environment = {**kept, "HOME": str(folder), "PATH": f"{folder}:{kept['PATH']}", "KUBECONFIG": "/dev/null"}

    def run(self, script: str, given: str = "") -> None:
        """Run a script that must succeed."""
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script],
            input=given, check=False, capture_output=True, text=True, timeout=60, env=self._environment,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr

    def apply(self, overlay: str) -> None:
        """Apply the servers of an overlay."""
        self.run("kubectl apply --validate=false -f -", json.dumps(named(overlay, "Deployment", "trident")))

    def num_servers(self) -> int:
        """Return how many servers there are to be; a number that nobody names is 1."""
        return int(self.cluster.objects["deployments", "trident"]["spec"].get("replicas", 1))


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    """A shell, and an empty cluster."""
    with running_cluster() as cluster:
        yield Shell(cluster, tmp_path)


def remedy() -> str:
    """What the page says is to be done before the first apply."""
    text = (ROOT / "docs/kubernetes.md").read_text()
    (script,) = re.findall(r"^<!-- forget replicas -->\n```\n(.+?)^```$", text, re.MULTILINE | re.DOTALL)
    return str(script)


@changes
def test_first_autoscaler_keeps_the_servers_where_their_number_is_forgotten(
    shell: Shell, before: str, after: str
) -> None:
    shell.apply(before)
    assert shell.num_servers() == 2
    shell.cluster.objects["deployments", "trident"]["spec"]["replicas"] = 5
    shell.run(remedy())
    shell.apply(after)
    assert shell.num_servers() == 5
    shell.apply(after)
    assert shell.num_servers() == 5


def test_first_autoscaler_would_leave_one_server_otherwise(shell: Shell) -> None:
    shell.apply("gpu")
    shell.apply("hpa")
    assert shell.num_servers() == 1
