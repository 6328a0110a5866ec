"""Every overlay renders to objects that the oldest and the newest Kubernetes take, and that fit each other."""

from __future__ import annotations

import copy
import json
import re
from functools import cache
from typing import Any

import kubernetes_validate
import pytest

from tests.kubernetes.custom_resources import complaints, needs_types
from tests.kubernetes.rendering import (
    EXAMPLES,
    KUBERNETES,
    MINIMUM_VERSIONS,
    NEWEST_VERSION,
    OLDEST_VERSION,
    OVERLAYS,
    Object,
    container_ports,
    containers,
    fields,
    is_builtin,
    named,
    objects,
    option,
    pod,
    pod_labels,
    render,
    rollout_job,
    selects,
    steps,
    workloads,
)
from tests.programs import needs

pytestmark = needs("kubectl", "Kubernetes' own packages, which have it as kubectl")
ALL = [*OVERLAYS, *EXAMPLES]
each_overlay = pytest.mark.parametrize("overlay", ALL)

#: What whoever deploys brings; docs/kubernetes.md says how each of them is made.
_BROUGHT = {
    "Secret": {"trident-keys", "trident-redis", "trident-tls"},
    "ConfigMap": {"trident-model-digests"},
    "PersistentVolumeClaim": {
        "trident-models", "trident-models-canary", "trident-models-second", "trident-checkpoint",
    },
}  # fmt: skip


def test_overlays_are_those_that_are_asked_for() -> None:
    asked = {"cpu", "gpu", "mig", "scarce-gpu", "gateway", "gie", "canary", "hpa", "keda", "monitoring", "redis", "tls"}
    assert {*asked, "multi-model", "image-volume", "checkpoint", "digest"} <= set(OVERLAYS)


def test_components_are_all_rendered_by_an_overlay() -> None:
    used = set()
    for file in [
        *KUBERNETES.glob("overlays/**/kustomization.yaml"),
        *KUBERNETES.glob("examples/**/kustomization.yaml"),
    ]:
        used |= set(re.findall(r"components/([a-z-]+)$", file.read_text(), re.MULTILINE))
    assert used == {folder.name for folder in (KUBERNETES / "components").iterdir()}


@cache
def validate(text: str, version: str) -> None:
    """Refuse an object that a version of Kubernetes would refuse; most overlays have most objects in common."""
    kubernetes_validate.validate(json.loads(text), version, strict=True)


def is_taken(one: Object, version: str) -> bool:
    """Whether a version of Kubernetes would take an object."""
    try:
        kubernetes_validate.validate(one, version, strict=True)
    except kubernetes_validate.ValidationError:
        return False
    return True


@each_overlay
def test_overlay_builtin_kinds_satisfy_the_strict_schemas_of_the_oldest_and_newest_version(overlay: str) -> None:
    for version in (MINIMUM_VERSIONS.get(overlay, OLDEST_VERSION), NEWEST_VERSION):
        for one in filter(is_builtin, render(overlay)):
            validate(json.dumps(one), version)


@pytest.mark.parametrize("overlay", MINIMUM_VERSIONS)
def test_overlay_with_a_minimum_version_is_refused_by_the_oldest(overlay: str) -> None:
    assert not all(is_taken(one, OLDEST_VERSION) for one in render(overlay) if is_builtin(one))


@needs_types
@pytest.mark.slow
def test_overlay_custom_resources_satisfy_their_types_and_schemas() -> None:
    texts = {json.dumps(one) for overlay in ALL for one in render(overlay) if not is_builtin(one)}
    found = [json.loads(text) for text in sorted(texts)]
    kinds = {one["kind"] for one in found}
    assert kinds >= {"HTTPRoute", "InferencePool", "ScaledObject", "PodMonitor", "PrometheusRule", "Certificate"}
    assert complaints(found) == [[] for _ in found]


def misspelt(one: Object, path: tuple[str | int, ...]) -> Object:
    """A copy of an object in which the last name of a path has a letter too many."""
    changed = copy.deepcopy(one)
    node: Any = changed
    for part in path[:-1]:
        node = node[part]
    node[f"{path[-1]}x"] = node.pop(path[-1])
    return changed


def misspellings(*, builtin: bool) -> list[tuple[str, Object]]:
    """What was misspelt, and the object with that fault: once for each field of each kind that is rendered."""
    found: dict[tuple[object, ...], Object] = {}
    for overlay in ALL:
        for one in render(overlay):
            if is_builtin(one) == builtin:
                for path in fields(one):
                    shape = (one["kind"], *(part for part in path if isinstance(part, str)))
                    if path[0] not in ("apiVersion", "kind") and shape not in found:
                        found[shape] = misspelt(one, path)
    return [(".".join(map(str, shape)), one) for shape, one in found.items()]


@pytest.mark.slow
def test_misspelt_fields_of_builtin_kinds_are_refused() -> None:
    assert [what for what, one in misspellings(builtin=True) if is_taken(one, NEWEST_VERSION)] == []


@needs_types
@pytest.mark.slow
def test_misspelt_fields_of_custom_resources_are_refused() -> None:
    changed = misspellings(builtin=False)
    found = complaints([one for _, one in changed])
    assert [what for (what, _), errors in zip(changed, found, strict=True) if not errors] == []


@each_overlay
def test_overlay_has_a_namespace_of_its_own(overlay: str) -> None:
    assert [one["metadata"]["name"] for one in objects(overlay, "Namespace")] == ["trident"]
    for one in render(overlay):
        assert one["kind"] == "Namespace" or one["metadata"]["namespace"] == "trident", one["metadata"]
    assert len({(one["kind"], one["metadata"]["name"]) for one in render(overlay)}) == len(render(overlay))


@each_overlay
def test_overlay_images_have_versions(overlay: str) -> None:
    for workload in workloads(overlay):
        for one in [*containers(workload), *steps(workload)]:
            assert re.fullmatch(r"[a-z/-]+:\d+\.\d+\.\d+", one["image"]), one["image"]
            assert one["imagePullPolicy"] == "IfNotPresent"
        for volume in pod(workload)["volumes"]:
            if "image" in volume:
                assert re.fullmatch(r"[a-z-]+@sha256:[0-9a-f]{64}", volume["image"]["reference"])


def test_overlay_images_are_of_the_version_in_pyproject() -> None:
    text = (KUBERNETES.parents[1] / "pyproject.toml").read_text()
    version = re.search(r'^version = "(.+)"$', text, re.MULTILINE)
    assert version is not None
    images = {one["image"] for workload in workloads("gateway") for one in containers(workload)}
    assert images == {f"trident-serve:{version[1]}", f"trident-gateway:{version[1]}"}


@each_overlay
def test_overlay_pods_are_restricted(overlay: str) -> None:
    labels = objects(overlay, "Namespace")[0]["metadata"]["labels"]
    # The picker's chart gives its container no securityContext: the profile restricted would refuse the pod.
    assert labels["pod-security.kubernetes.io/enforce"] == ("baseline" if overlay == "gie" else "restricted")
    assert labels["pod-security.kubernetes.io/warn"] == "restricted"
    for workload in workloads(overlay):
        specification = pod(workload)
        assert specification["automountServiceAccountToken"] is False
        assert specification["enableServiceLinks"] is False
        context = specification["securityContext"]
        assert (context["runAsNonRoot"], context["runAsUser"]) == (True, 1000)
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not {"hostNetwork", "hostPID", "hostIPC"} & specification.keys()
        for one in [*containers(workload), *steps(workload)]:
            assert one["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }


@each_overlay
def test_overlay_probes_are_on_every_container_that_stays(overlay: str) -> None:
    for workload in workloads(overlay):
        for one in containers(workload):
            names = {port["name"] for port in one["ports"]}
            for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
                probe = one[kind]
                assert probe["timeoutSeconds"] >= 5  # a busy machine is not a dead one
                for way in ("httpGet", "tcpSocket"):
                    # A name is of the container's own ports; a number may be of any in the pod.
                    assert way not in probe or probe[way]["port"] in names | container_ports(workload)
        for one in steps(workload):
            assert not {"startupProbe", "readinessProbe", "livenessProbe"} & one.keys()  # Kubernetes refuses them


@each_overlay
def test_overlay_probes_have_the_values_of_the_design(overlay: str) -> None:
    design = {"startupProbe": (5, 5, 360), "readinessProbe": (5, 5, 3), "livenessProbe": (20, 10, 6)}
    # Asked of a gateway wherever the pod has one: Triton calls itself not ready while it loads a new engine.
    paths = {
        "gateway": (("/ready", "private"), ("/ready", "private"), ("/live", "private")),
        "triton beside it": (("/v2/health/ready", "triton-http"), ("/ready", 8081), "script"),
        "triton": (("/v2/health/ready", "triton-http"), "script", ("/v2/health/live", "triton-http")),
    }
    for workload in objects(overlay, "Deployment"):
        names = [one["name"] for one in containers(workload)]
        for one in containers(workload):
            for kind, values in design.items():
                probe = one[kind]
                assert (
                    tuple(probe[f"{name}"] for name in ("periodSeconds", "timeoutSeconds", "failureThreshold"))
                    == values
                )
            asked = [one[kind].get("httpGet") for kind in design]
            found = tuple((way["path"], way["port"]) if way else "script" for way in asked)
            assert (
                found
                == paths[
                    "triton beside it" if names == ["triton", "gateway"] and one["name"] == "triton" else one["name"]
                ]
            )
            # Where calls wait for an engine that stands still there is nothing to drain; Triton alone is asked nothing
            # but whether it answers.
            grace = one["livenessProbe"].get("terminationGracePeriodSeconds")
            assert grace == (None if names == ["triton"] else 15)


@each_overlay
def test_overlay_rollouts_have_the_values_of_the_design(overlay: str) -> None:
    scarce = overlay == "scarce-gpu"
    for one in objects(overlay, "Deployment"):
        spec = one["spec"]
        is_scaled = overlay in ("hpa", "keda", "argo-rollouts") and one["metadata"]["name"] == "trident"
        # An autoscaler's number would be lost with each apply.
        assert spec.get("replicas") == (None if is_scaled else 2)
        assert (spec["minReadySeconds"], spec["progressDeadlineSeconds"], spec["revisionHistoryLimit"]) == (10, 1800, 5)
        rolling = {"maxSurge": 0, "maxUnavailable": 1} if scarce else {"maxSurge": 1, "maxUnavailable": 0}
        assert spec["strategy"] == {"type": "RollingUpdate", "rollingUpdate": rolling}
        (spread,) = pod(one)["topologySpreadConstraints"]
        assert spread["topologyKey"] == "kubernetes.io/hostname"
        assert spread["labelSelector"] == spec["selector"]
        assert spread["whenUnsatisfiable"] == ("DoNotSchedule" if overlay == "gie" else "ScheduleAnyway")


@each_overlay
def test_overlay_grace_is_longer_than_the_drain(overlay: str) -> None:
    for workload in objects(overlay, "Deployment"):
        drains = [
            float(option(one, "--drain-delay") or 0) + float(option(one, "--drain-timeout") or 0)
            for one in containers(workload)
        ]
        assert max(drains) == 15 + 120
        assert pod(workload)["terminationGracePeriodSeconds"] == max(drains) + 15


@each_overlay
def test_overlay_triton_outlives_the_gateway_beside_it(overlay: str) -> None:
    for workload in objects(overlay, "Deployment"):
        main = [one["name"] for one in pod(workload)["containers"]]
        sidecars = [one["name"] for one in containers(workload)[: -len(main)]]
        assert (sidecars, main) in ((["triton"], ["gateway"]), ([], ["triton"]), ([], ["gateway"]))
        if sidecars:
            # Asked to stop only when the gateway has ended: whatever it waits for then comes from the grace.
            triton, gateway = containers(workload)
            assert option(triton, "--drain-delay") == "0"
            assert float(option(triton, "--drain-timeout") or 0) >= float(option(gateway, "--drain-timeout") or 0)
            assert pod(workload)["initContainers"][-1]["name"] == "triton", "steps come before the server"


@each_overlay
def test_overlay_resources_are_those_of_the_design(overlay: str) -> None:
    for workload in workloads(overlay):
        for one in [*containers(workload), *steps(workload)]:
            resources = one["resources"]
            if one["name"] in ("gateway", "redis"):
                assert "cpu" not in resources["limits"]  # throttling shows as gaps between tokens
                assert resources["requests"]["memory"] == resources["limits"]["memory"]
            else:
                assert resources["requests"] == resources["limits"]
            if one["name"] == "gateway":
                assert resources == {"requests": {"cpu": "1", "memory": "512Mi"}, "limits": {"memory": "512Mi"}}


@pytest.mark.parametrize(
    ("overlay", "expected"),
    [("gpu", "nvidia.com/gpu"), ("mig", "nvidia.com/mig-3g.40gb"), ("scarce-gpu", "nvidia.com/gpu"), ("cpu", None)],
)
def test_overlay_servers_ask_for_one_accelerator(overlay: str, expected: str | None) -> None:
    triton = containers(named(overlay, "Deployment", "trident"))[0]
    found = {name: count for name, count in triton["resources"]["limits"].items() if name.startswith("nvidia.com/")}
    assert found == ({} if expected is None else {expected: "1"})


@each_overlay
def test_overlay_mounts_have_volumes_and_volumes_are_mounted(overlay: str) -> None:
    for workload in workloads(overlay):
        claims = [one["metadata"]["name"] for one in workload["spec"].get("volumeClaimTemplates", [])]
        volumes = {one["name"] for one in pod(workload)["volumes"]} | set(claims)
        mounts = [mount for one in [*containers(workload), *steps(workload)] for mount in one["volumeMounts"]]
        assert {mount["name"] for mount in mounts} == volumes
        for one in [*containers(workload), *steps(workload)]:
            paths = [mount["mountPath"] for mount in one["volumeMounts"]]
            assert len(paths) == len(set(paths))


@each_overlay
def test_overlay_programs_can_write_where_they_do(overlay: str) -> None:
    tmp, shm = "/tmp", "/dev/shm"  # noqa: S108
    written = {"triton": {tmp, shm}, "gateway": {tmp}, "build": {tmp, "/models"}, "redis": {"/data"}}
    for workload in workloads(overlay):
        volumes = {one["name"]: one for one in pod(workload)["volumes"]}
        for one in [*containers(workload), *steps(workload)]:
            writable = {mount["mountPath"] for mount in one["volumeMounts"] if not mount.get("readOnly")}
            assert writable >= written.get(one["name"], set())
            for mount in one["volumeMounts"]:
                volume = volumes.get(mount["name"], {})
                assert "secret" not in volume or mount["readOnly"]
                if mount["mountPath"] == shm:
                    assert volume["emptyDir"] == {"medium": "Memory", "sizeLimit": "1Gi"}
                if mount["mountPath"] == "/models" and one["name"] != "build":
                    assert mount["readOnly"]
                if "emptyDir" in volume:
                    assert "sizeLimit" in volume["emptyDir"]


def resolves(overlay: str, kind: str, name: str) -> bool:
    """Whether an object is in the overlay, or brought by whoever deploys."""
    there = {(one["kind"], one["metadata"]["name"]) for one in render(overlay)}
    return (kind, name) in there or name in _BROUGHT.get(kind, ())


@each_overlay
def test_overlay_pods_refer_to_what_is_there_or_brought(overlay: str) -> None:
    named_by = {"secret": ("Secret", "secretName"), "configMap": ("ConfigMap", "name"),
                "persistentVolumeClaim": ("PersistentVolumeClaim", "claimName")}  # fmt: skip
    for workload in workloads(overlay):
        assert resolves(overlay, "ServiceAccount", pod(workload)["serviceAccountName"])
        for volume in pod(workload)["volumes"]:
            for source, (kind, key) in named_by.items():
                assert source not in volume or resolves(overlay, kind, volume[source][key]), volume
        for one in containers(workload):
            for variable in one.get("env", []):
                source = variable.get("valueFrom")
                assert not source or resolves(overlay, "Secret", source["secretKeyRef"]["name"])


@each_overlay
def test_overlay_containers_use_variables_and_files_that_they_have(overlay: str) -> None:
    for one in [container for workload in workloads(overlay) for container in containers(workload)]:
        known: set[str] = set()
        for variable in one.get("env", []):
            # $(NAME) is only replaced where NAME stands before.
            assert set(re.findall(r"\$\(([A-Z_]+)\)", variable.get("value", ""))) <= known
            known.add(variable["name"])
        for word in [*one.get("args", []), *one.get("command", [])]:
            assert set(re.findall(r"\$\(([A-Z_]+)\)", word)) <= known
        for name in ("--keys", "--tls-cert", "--tls-key"):
            path = option(one, name)
            assert path is None or any(path.startswith(f"{mount['mountPath']}/") for mount in one["volumeMounts"])


@each_overlay
def test_overlay_objects_refer_to_objects_that_are_there(overlay: str) -> None:
    for autoscaler in objects(overlay, "HorizontalPodAutoscaler", "ScaledObject"):
        target = autoscaler["spec"]["scaleTargetRef"]
        assert resolves(overlay, target["kind"], target["name"])
    for route in objects(overlay, "HTTPRoute"):
        for backend in [backend for rule in route["spec"]["rules"] for backend in rule["backendRefs"]]:
            assert resolves(overlay, backend["kind"], backend["name"])
            if backend["kind"] == "Service":
                service = named(overlay, "Service", backend["name"])
                assert backend["port"] in {port["port"] for port in service["spec"]["ports"]}
    for binding in objects(overlay, "RoleBinding"):
        assert resolves(overlay, binding["roleRef"]["kind"], binding["roleRef"]["name"])
        for subject in binding["subjects"]:
            assert resolves(overlay, subject["kind"], subject["name"])
            assert subject["namespace"] == binding["metadata"]["namespace"]


def test_overlay_tls_shows_the_certificate_that_is_asked_for() -> None:
    certificate = named("tls", "Certificate", "trident")["spec"]
    (volume,) = [one for one in pod(named("tls", "Deployment", "trident"))["volumes"] if one["name"] == "tls"]
    assert volume["secret"]["secretName"] == certificate["secretName"]
    assert "trident.trident.svc" in certificate["dnsNames"]


@each_overlay
def test_overlay_selectors_select_their_pods_and_no_others(overlay: str) -> None:
    for workload in workloads(overlay):
        selector = workload["spec"]["selector"]["matchLabels"]
        selected = [one["metadata"]["name"] for one in workloads(overlay) if selects(selector, pod_labels(one))]
        assert selected == [workload["metadata"]["name"]]
    for workload in objects(overlay, "Deployment"):
        budgets = [
            one
            for one in objects(overlay, "PodDisruptionBudget")
            if selects(one["spec"]["selector"]["matchLabels"], pod_labels(workload))
        ]
        # The API of evictions answers with an error where two budgets hold for a pod.
        assert [one["metadata"]["name"] for one in budgets] == [workload["metadata"]["name"]]
        assert budgets[0]["spec"]["maxUnavailable"] == 1
        assert budgets[0]["spec"]["unhealthyPodEvictionPolicy"] == "AlwaysAllow"
    for monitor in objects(overlay, "PodMonitor"):
        assert all(selects(monitor["spec"]["selector"]["matchLabels"], pod_labels(one)) for one in workloads(overlay))


@each_overlay
def test_overlay_services_lead_to_ports_that_are_listened_on(overlay: str) -> None:
    names = set()
    for service in objects(overlay, "Service"):
        names.add(service["metadata"]["name"])
        behind = [one for one in workloads(overlay) if selects(service["spec"]["selector"], pod_labels(one))]
        assert behind, service["metadata"]["name"]
        assert not service["spec"].get("publishNotReadyAddresses")
        for port in service["spec"]["ports"]:
            # By number: by name, ports of sidecars were not found before Kubernetes 1.33.
            assert isinstance(port["targetPort"], int)
            assert all(port["targetPort"] in container_ports(one) for one in behind), port
    assert names >= {"trident", "trident-pods", "trident-metrics"}
    assert named(overlay, "Service", "trident-pods")["spec"]["clusterIP"] == "None"
    public = named(overlay, "Service", "trident")
    gateways = [one for one in workloads(overlay) if selects(public["spec"]["selector"], pod_labels(one))]
    assert all(containers(one)[-1]["name"] == "gateway" for one in gateways)


@each_overlay
def test_overlay_network_policies_are_about_ports_that_are_listened_on(overlay: str) -> None:
    beside = [rollout_job()] if overlay == "canary" else []
    for policy in objects(overlay, "NetworkPolicy"):
        selector = policy["spec"]["podSelector"]["matchLabels"]
        held = [one for one in [*workloads(overlay), *beside] if selects(selector, pod_labels(one))]
        assert held, policy["metadata"]["name"]
        for rule in policy["spec"].get("ingress", []):
            listened = set().union(*(container_ports(one) for one in held))
            assert {port["port"] for port in rule["ports"]} & listened, policy["metadata"]["name"]


def test_overlay_separate_gateways_find_servers_by_the_headless_service() -> None:
    for overlay in ("gateway", "multi-model", "redis"):
        (gateway,) = containers(named(overlay, "Deployment", "trident-gateway"))
        assert option(gateway, "--server-dns") == "http://trident-pods:8000"
        selector = named(overlay, "Service", "trident-pods")["spec"]["selector"]
        servers = [one for one in workloads(overlay) if containers(one)[0]["name"] == "triton"]
        assert servers
        assert all(selects(selector, pod_labels(one)) for one in servers)


def test_overlay_canary_is_apart_and_gets_nothing_at_first() -> None:
    stable, canary = (named("canary", "Service", name) for name in ("trident", "trident-canary"))
    pods = {one["metadata"]["name"]: pod_labels(one) for one in workloads("canary")}
    assert [name for name, labels in pods.items() if selects(stable["spec"]["selector"], labels)] == ["trident"]
    assert [name for name, labels in pods.items() if selects(canary["spec"]["selector"], labels)] == ["trident-canary"]
    (rule,) = named("canary", "HTTPRoute", "trident")["spec"]["rules"]
    weights = {backend["name"]: backend["weight"] for backend in rule["backendRefs"]}
    assert weights == {"trident": 100, "trident-canary": 0}
    assert rule["timeouts"] == {"request": "0s"}  # the gateway ends requests, proxies would cut streams


def test_overlay_rollout_may_move_the_weights_of_one_route_alone() -> None:
    (rule,) = named("canary", "Role", "trident-rollout")["rules"]
    assert rule["resources"] == ["httproutes"]
    assert rule["resourceNames"] == [named("canary", "HTTPRoute", "trident")["metadata"]["name"]]
    assert set(rule["verbs"]) == {"get", "patch"}


def test_overlay_picker_finds_pods_metrics_and_an_open_door_without_it() -> None:
    pool = named("gie", "InferencePool", "trident")["spec"]
    (server,) = workloads("gie")
    assert selects(pool["selector"]["matchLabels"], pod_labels(server))
    assert pod_labels(server)["llm-d.ai/engine-type"] == "triton-tensorrt-llm"
    assert "llm-d.ai/engine-type" not in server["spec"]["selector"]["matchLabels"]  # a selector cannot change later
    (port,) = pool["targetPorts"]
    (public,) = [entry for entry in containers(server)[1]["ports"] if entry["name"] == "public"]
    assert port["number"] == public["containerPort"]
    assert pool["endpointPickerRef"]["failureMode"] == "FailOpen"
