"""What stands beside the overlays and is installed by its own means: values for charts of others, a claim of models."""

from __future__ import annotations

import argparse
import re
import subprocess
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import kubernetes_validate
import pytest
import yaml

from tests.kubernetes.network_policies import Place, may_connect
from tests.kubernetes.rendering import (
    EXAMPLES,
    KUBERNETES,
    NEWEST_VERSION,
    OLDEST_VERSION,
    OVERLAYS,
    container_ports,
    containers,
    named,
    objects,
    pod,
    pod_labels,
    rollout_job,
    selects,
    workloads,
)
from tests.programs import needs
from trident_tools import rollout

FOLDER = KUBERNETES / "examples"
pytestmark = needs("kubectl", "Kubernetes' own packages, which have it as kubectl")


def values(name: str) -> Any:
    """The values for a chart of others."""
    return yaml.safe_load((FOLDER / name).read_text())


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
    config = yaml.safe_load(router["epp"]["pluginsCustomConfig"][router["epp"]["pluginsConfigFile"]])
    plugins = {plugin["type"]: plugin.get("parameters", {}) for plugin in config["plugins"]}
    assert plugins["metrics-data-source"]["port"] in container_ports(server)
    assert plugins["core-metrics-extractor"]["defaultEngine"] == router["modelServers"]["type"]
    assert {one["pluginRef"] for one in config["schedulingProfiles"][0]["plugins"]} <= plugins.keys()
    # The chart names the picker after its release, which the comment at the top calls trident.
    assert pool["spec"]["endpointPickerRef"]["name"] == "trident-epp"


def test_examples_models_come_into_the_claim_that_servers_read() -> None:
    claim, filler = yaml.safe_load_all((FOLDER / "models.yaml").read_text())
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


def test_examples_rollout_reaches_both_sides_by_the_names_that_it_is_given() -> None:
    job = rollout_job()
    for version in (OLDEST_VERSION, NEWEST_VERSION):
        kubernetes_validate.validate(job, version, strict=True)
    (one,) = containers(job)
    trident, command, action, *words = one["command"]
    assert (trident, command, action) == ("trident", "rollout", "start")
    parser = argparse.ArgumentParser(allow_abbrev=False)
    rollout.add_arguments(parser)
    args = parser.parse_args([action, *words])

    route = named("canary", "HTTPRoute", "trident")
    assert args.httproute == f"{route['metadata']['namespace']}/{route['metadata']['name']}"
    backends = [backend["name"] for backend in route["spec"]["rules"][0]["backendRefs"]]
    assert backends == [args.stable_backend, args.canary_backend]
    here = Place(pod_labels(job), job["metadata"]["namespace"])
    held = objects("canary", "NetworkPolicy")
    (to,), (stable,), (canary,) = args.to, args.gateway_dns, args.canary_gateway_dns
    for url, side, is_headless in (
        (to, "trident-canary", False), (args.compare_with, "trident", False),
        (canary, "trident-canary", True), (stable, "trident", True),
    ):  # fmt: skip
        parts = urlsplit(url)
        service = named("canary", "Service", parts.hostname or "")["spec"]
        assert parts.port in {port["port"] for port in service["ports"]}
        assert (service.get("clusterIP") == "None") == is_headless
        behind = [one for one in workloads("canary") if selects(service["selector"], pod_labels(one))]
        assert [one["metadata"]["name"] for one in behind] == [side]
        assert may_connect(held, here, Place(pod_labels(behind[0]), "trident"), parts.port or 0)
        # Without its label it would reach nothing.
        assert not may_connect(held, Place({}, "trident"), Place(pod_labels(behind[0]), "trident"), parts.port or 0)
    for port in (443, 6443):
        assert may_connect(held, here, Place(address="192.0.2.1"), port)
    assert may_connect(held, here, Place({}, "kube-system"), 53, "UDP")


def test_examples_rollout_has_a_token_the_files_that_it_names_and_no_more_rights_than_a_server() -> None:
    job = rollout_job()
    specification, (one,) = pod(job), containers(job)
    assert (
        specification["serviceAccountName"] == named("canary", "RoleBinding", "trident-rollout")["subjects"][0]["name"]
    )
    assert specification["automountServiceAccountToken"] is True
    assert (specification["restartPolicy"], job["spec"]["backoffLimit"]) == ("Never", 0)
    server = named("canary", "Deployment", "trident")
    assert specification["securityContext"].items() <= pod(server)["securityContext"].items()
    gateway = containers(server)[-1]
    assert (one["image"], one["securityContext"]) == (gateway["image"], gateway["securityContext"])
    mounts = {mount["mountPath"]: mount.get("readOnly", False) for mount in one["volumeMounts"]}
    paths = dict(word.split("=") for word in one["command"] if word.startswith(("--key-file=", "--state=")))
    assert mounts == {str(Path(paths["--key-file"]).parent): True, str(Path(paths["--state"]).parent): False}
    # Neither a Service nor a monitor takes it for a server.
    for service in objects("canary", "Service"):
        assert not selects(service["spec"]["selector"], pod_labels(job))


def test_examples_argo_judges_the_two_sides_of_the_route_that_it_moves() -> None:
    spec = named("argo-rollouts", "Rollout", "trident")["spec"]
    canary = spec["strategy"]["canary"]
    route = named("argo-rollouts", "HTTPRoute", "trident")
    assert canary["trafficRouting"]["plugins"]["argoproj-labs/gatewayAPI"] == {
        "httpRoute": route["metadata"]["name"],
        "namespace": route["metadata"]["namespace"],
    }
    backends = [backend["name"] for rule in route["spec"]["rules"] for backend in rule["backendRefs"]]
    assert backends == [canary["stableService"], canary["canaryService"]]
    assert spec["selector"] == named("argo-rollouts", "Deployment", spec["workloadRef"]["name"])["spec"]["selector"]
    (template,) = canary["analysis"]["templates"]
    analysis = named("argo-rollouts", "AnalysisTemplate", template["templateName"])["spec"]
    assert {arg["name"] for arg in analysis["args"]} == {arg["name"] for arg in canary["analysis"]["args"]}
    (label,) = named("argo-rollouts", "PodMonitor", "trident")["spec"]["podTargetLabels"]
    assert all(label.replace("-", "_") in one["provider"]["prometheus"]["query"] for one in analysis["metrics"])
    limits = {one["name"]: float(one["successCondition"].rpartition(" ")[2]) for one in analysis["metrics"]}
    assert limits == {"errors": 0.005, "time-to-first-token": 1.25, "inter-token-latency": 1.15, "cut-answers": 0.1}


@needs("promtool", "Debian's prometheus")
def test_examples_argo_asks_what_prometheus_understands(tmp_path: Path) -> None:
    metrics = named("argo-rollouts", "AnalysisTemplate", "trident-canary")["spec"]["metrics"]
    rules = [
        {"record": "gate", "labels": {"gate": one["name"]}, "expr": one["provider"]["prometheus"]["query"]}
        for one in metrics
    ]
    (tmp_path / "rules.yml").write_text(yaml.safe_dump({"groups": [{"name": "gates", "rules": rules}]}))
    command = ["promtool", "check", "rules", str(tmp_path / "rules.yml")]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def described() -> str:
    """The page of this folder."""
    return (KUBERNETES.parents[1] / "docs/kubernetes.md").read_text()


def test_examples_and_overlays_are_described_with_their_components() -> None:
    for overlay in OVERLAYS:
        file = KUBERNETES / "overlays" / overlay / "kustomization.yaml"
        used = [Path(name).name for name in yaml.safe_load(file.read_text())["components"]]
        row = re.search(rf"^\| `{overlay}` \|.*\| (.+) \|$", described(), re.MULTILINE)
        assert row is not None, overlay
        assert row[1].split(", ") == used
    for name in EXAMPLES:
        assert f"`examples/{name}`" in described()


@pytest.mark.parametrize("name", ["prometheus-adapter.yaml", "picker.yaml", "models.yaml", "rollout.yaml"])
def test_examples_are_described(name: str) -> None:
    assert f"examples/{name}" in described()
