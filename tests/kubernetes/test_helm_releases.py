"""Helm itself installs, upgrades and rolls back the chart, at an API server that holds to what cannot change."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from contextlib import contextmanager

import helm_python
import pytest

from tests.kubernetes.charts import HELM_LABELS, LOADED, Values, overlay_values, template
from tests.kubernetes.cluster_api import KINDS, ClusterApi, running_cluster

_PLURALS = {kind: name for _, kind, name in KINDS}


@contextmanager
def helm() -> Iterator[tuple[helm_python.Config, ClusterApi]]:
    """Helm, which keeps its record in memory, and the cluster that it works on."""
    with running_cluster() as cluster:
        connection = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "double",
            "contexts": [{"name": "double", "context": {"cluster": "double", "user": "nobody"}}],
            "clusters": [{"name": "double", "cluster": {"server": cluster.url}}],
            "users": [{"name": "nobody", "user": {}}],
        }
        content = json.dumps(connection)
        with helm_python.Config(
            kubeconfig_content=content, namespace="trident", storage_driver="memory", qps=1000, burst_limit=1000
        ) as config:
            yield config, cluster


def upgrade(config: helm_python.Config, values: Values) -> None:
    """Upgrade the release to some values and no others."""
    config.upgrade(LOADED, "trident", values, namespace="trident", reset_values=True, timeout=60)


def shows(cluster: ClusterApi, values: Values) -> bool:
    """Whether the cluster has exactly the objects of some values."""
    expected = {(_PLURALS[one["kind"]], one["metadata"]["name"]): one for one in template(values)}
    found = copy.deepcopy(cluster.objects)
    for objects in (expected, found):
        for one in objects.values():
            one["metadata"].pop("annotations", None)  # Helm's own record of the release
            for label in HELM_LABELS:
                one["metadata"]["labels"].pop(label)
    return found == expected


def weights(cluster: ClusterApi) -> list[int]:
    """The weights of both sides."""
    (rule,) = cluster.objects["httproutes", "trident"]["spec"]["rules"]
    return [backend["weight"] for backend in rule["backendRefs"]]


@pytest.mark.slow
def test_release_goes_from_any_values_to_any_others_and_back() -> None:
    chain = ["cpu", "redis", "canary", "multi-model", "gie", "tls", "keda", "gateway", "checkpoint"]
    with helm() as (config, cluster):
        config.install(LOADED, "trident", overlay_values(chain[0]), namespace="trident", timeout=60)
        assert shows(cluster, overlay_values(chain[0]))
        for overlay in chain[1:]:
            upgrade(config, overlay_values(overlay))
            assert shows(cluster, overlay_values(overlay)), overlay
        config.rollback("trident", version=2, timeout=60)
        assert shows(cluster, overlay_values(chain[1]))
        assert cluster.refused == []
        assert cluster.unknown == []


@pytest.mark.slow
def test_release_upgrade_keeps_the_weights_of_a_rollout() -> None:
    values = overlay_values("canary")
    with helm() as (config, cluster):
        config.install(LOADED, "trident", values, namespace="trident", timeout=60)
        assert weights(cluster) == [100, 0]
        (rule,) = cluster.objects["httproutes", "trident"]["spec"]["rules"]
        for weight, backend in zip((90, 10), rule["backendRefs"], strict=True):
            backend["weight"] = weight
        upgrade(config, {**values, "replicas": 5})
        assert cluster.objects["deployments", "trident"]["spec"]["replicas"] == 5
        assert weights(cluster) == [90, 10]


@pytest.mark.parametrize("values", [{"drain": {"terminationGracePeriodSeconds": 100}}, {"replica": 3}])
def test_release_that_is_refused_changes_nothing(values: Values) -> None:
    with helm() as (config, cluster):
        config.install(LOADED, "trident", {}, namespace="trident", timeout=60)
        with pytest.raises(helm_python.HelmError, match=r"terminationGracePeriodSeconds is 100|'replica' not allowed"):
            upgrade(config, values)
        assert shows(cluster, {})


def test_cluster_refuses_to_change_what_cannot_change() -> None:
    (server,) = [one for one in template() if one["kind"] == "Deployment"]
    cluster = ClusterApi("")
    path = "/apis/apps/v1/namespaces/trident/deployments"
    assert cluster.answer("POST", path, server)[0] == 201
    other = copy.deepcopy(server)
    other["spec"]["replicas"] = 3
    assert cluster.answer("PATCH", f"{path}/trident?fieldManager=helm", other)[0] == 200
    other["spec"]["selector"]["matchLabels"]["version"] = "2"
    assert cluster.answer("PATCH", f"{path}/trident?fieldManager=helm", other)[0] == 422
    assert cluster.refused == [("deployments", "trident")]
