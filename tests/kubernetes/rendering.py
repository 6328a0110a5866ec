"""Overlays as kubectl renders them.

Owns the list of overlays and how their objects are found. Never a cluster: kustomize needs none.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import kubernetes_validate
import yaml

ROOT = Path(__file__).parents[2]
KUBERNETES = ROOT / "docker/kubernetes"
OVERLAYS = sorted(folder.name for folder in (KUBERNETES / "overlays").iterdir() if folder.is_dir())
#: Deployments that show something more, and that the chart does not have.
EXAMPLES = sorted(file.parent.name for file in (KUBERNETES / "examples").glob("*/kustomization.yaml"))
#: Overlays that need a newer Kubernetes than the oldest that has native sidecars.
MINIMUM_VERSIONS = {"image-volume": "1.33"}
OLDEST_VERSION = "1.29"
NEWEST_VERSION = kubernetes_validate.latest_version().rpartition(".")[0]

Object = dict[str, Any]


@lru_cache
def render(overlay: str) -> tuple[Object, ...]:
    """Return the objects of an overlay or an example; they are shared by all tests and must not be changed."""
    folder = KUBERNETES / ("examples" if overlay in EXAMPLES else "overlays")
    command = ["kubectl", "kustomize", str(folder / overlay)]
    text = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout
    return tuple(yaml.safe_load_all(text))


def objects(overlay: str, *kinds: str) -> list[Object]:
    """Return the objects of an overlay that are of one of some kinds."""
    return [one for one in render(overlay) if one["kind"] in kinds]


def named(overlay: str, kind: str, name: str) -> Object:
    """Return one object of an overlay."""
    found = [one for one in objects(overlay, kind) if one["metadata"]["name"] == name]
    assert len(found) == 1, f"{overlay}: has {len(found)} {kind} {name}"
    return found[0]


def workloads(overlay: str) -> list[Object]:
    """Return what makes pods."""
    return objects(overlay, "Deployment", "StatefulSet")


def rollout_job() -> Object:
    """Return the Job that runs `trident rollout` beside the overlay canary, and is no part of it."""
    job: Object = yaml.safe_load((KUBERNETES / "examples/rollout.yaml").read_text())
    return job


def pod(workload: Object) -> Object:
    """Return the specification of a workload's pods."""
    specification: Object = workload["spec"]["template"]["spec"]
    return specification


def pod_labels(workload: Object) -> dict[str, str]:
    """Return the labels of a workload's pods."""
    labels: dict[str, str] = workload["spec"]["template"]["metadata"]["labels"]
    return labels


def containers(workload: Object) -> list[Object]:
    """Return the containers that run as long as a pod does: native sidecars and the main ones."""
    sidecars = [one for one in pod(workload).get("initContainers", []) if one.get("restartPolicy") == "Always"]
    return [*sidecars, *pod(workload)["containers"]]


def steps(workload: Object) -> list[Object]:
    """Return the containers that end before those that stay are started."""
    return [one for one in pod(workload).get("initContainers", []) if one.get("restartPolicy") != "Always"]


def selects(selector: Mapping[str, str], labels: Mapping[str, str]) -> bool:
    """Return whether a map of labels, such as a Service's selector, selects a pod with some labels."""
    return bool(selector) and selector.items() <= labels.items()


def container_ports(workload: Object) -> set[int]:
    """Return the ports on which a workload's pods listen."""
    return {port["containerPort"] for one in containers(workload) for port in one.get("ports", [])}


def option(container: Object, name: str) -> str | None:
    """Return the value of an option in a container's arguments, which are written `--name=value`."""
    values = [word.partition("=")[2] for word in container.get("args", []) if word.partition("=")[0] == name]
    return values[-1] if values else None


def is_builtin(one: Object) -> bool:
    """Return whether an object is of a kind that every Kubernetes has."""
    group, slash, _ = one["apiVersion"].partition("/")
    builtin = {"apps", "autoscaling", "batch", "policy", "networking.k8s.io", "rbac.authorization.k8s.io"}
    return not slash or group in builtin


def fields(node: object, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Yield the path of every field of an object, but for those below maps with keys of their own, such as labels."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield (*path, key)
            if key not in _MAPS and not (key == "metadata" and "triggers" in path):
                yield from fields(value, (*path, key))
    elif isinstance(node, list):
        for index, value in enumerate(node):
            yield from fields(value, (*path, index))


#: Fields whose keys are a user's, or a scaler's, own.
_MAPS = {"labels", "annotations", "matchLabels", "limits", "requests", "selector", "data", "stringData", "plugins"}
