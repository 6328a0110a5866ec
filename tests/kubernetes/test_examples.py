"""What stands beside the overlays and is installed by its own means: values for charts of others, a claim of models."""

from __future__ import annotations

from typing import Any

import kubernetes_validate
import pytest
import yaml

from tests.kubernetes.rendering import (
    KUBERNETES,
    NEWEST_VERSION,
    OLDEST_VERSION,
    container_ports,
    containers,
    named,
    pod,
    pod_labels,
    selects,
    workloads,
)
from tests.programs import needs

EXAMPLES = KUBERNETES / "examples"
pytestmark = needs("kubectl", "Kubernetes' own packages, which have it as kubectl")


def values(name: str) -> Any:
    """The values for a chart of others."""
    return yaml.safe_load((EXAMPLES / name).read_text())


def test_examples_adapter_has_the_metrics_that_the_autoscaler_asks_for() -> None:
    rules = values("prometheus-adapter.yaml")["rules"]
    pods, external = named("hpa", "HorizontalPodAutoscaler", "trident")["spec"]["metrics"]
    assert [rule["name"]["as"] for rule in rules["custom"]] == [pods["pods"]["metric"]["name"]]
    assert [rule["name"]["as"] for rule in rules["external"]] == [external["external"]["metric"]["name"]]
    namespaces = external["external"]["metric"]["selector"]["matchLabels"]
    assert namespaces == {"namespace": named("hpa", "Deployment", "trident")["metadata"]["namespace"]}


def test_examples_picker_is_the_one_that_the_pool_refers_to() -> None:
    router = values("picker.yaml")["router"]
    pool = named("gie", "InferencePool", "trident")
    (server,) = workloads("gie")
    assert router["modelServers"]["matchLabels"] == pool["spec"]["selector"]["matchLabels"]
    assert router["modelServers"]["targetPorts"] == pool["spec"]["targetPorts"]
    assert router["modelServers"]["type"] == pod_labels(server)["llm-d.ai/engine-type"]
    flags = router["epp"]["flags"]
    assert (flags["pool-name"], flags["pool-namespace"]) == (pool["metadata"]["name"], pool["metadata"]["namespace"])
    assert flags["model-server-metrics-port"] in container_ports(server)
    # The chart names the picker after its release, which the comment at the top calls trident.
    assert pool["spec"]["endpointPickerRef"]["name"] == "trident-epp"


def test_examples_models_come_into_the_claim_that_servers_read() -> None:
    claim, filler = yaml.safe_load_all((EXAMPLES / "models.yaml").read_text())
    for version in (OLDEST_VERSION, NEWEST_VERSION):
        kubernetes_validate.validate(claim, version, strict=True)
        kubernetes_validate.validate(filler, version, strict=True)
    server = named("cpu", "Deployment", "trident")
    (models,) = [one for one in pod(server)["volumes"] if one["name"] == "models"]
    assert models["persistentVolumeClaim"] == {"claimName": claim["metadata"]["name"], "readOnly": True}
    assert claim["metadata"]["namespace"] == server["metadata"]["namespace"]
    triton = containers(server)[0]
    (container,) = filler["spec"]["containers"]
    assert container["image"] == triton["image"]
    assert container["securityContext"] == triton["securityContext"]
    assert filler["spec"]["securityContext"]["runAsUser"] == pod(server)["securityContext"]["runAsUser"]
    # Neither a Service nor a policy takes it for a server.
    for one in ("trident", "trident-pods", "trident-metrics"):
        assert not selects(named("cpu", "Service", one)["spec"]["selector"], filler["metadata"]["labels"])


@pytest.mark.parametrize("name", ["prometheus-adapter.yaml", "picker.yaml", "models.yaml"])
def test_examples_are_described(name: str) -> None:
    assert f"examples/{name}" in (KUBERNETES.parents[1] / "docs/kubernetes.md").read_text()
