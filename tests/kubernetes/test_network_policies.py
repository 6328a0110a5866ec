"""Who may reach what, by the policies of each overlay: nobody, but for what the design names."""

from __future__ import annotations

import copy

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.kubernetes.network_policies import Place, may_connect
from tests.kubernetes.rendering import EXAMPLES, OVERLAYS, Object, container_ports, objects, pod_labels, workloads
from tests.programs import needs

pytestmark = needs("kubectl", "Kubernetes' own packages, which have it as kubectl")

SERVER = {"app.kubernetes.io/name": "trident", "app.kubernetes.io/component": "server"}
GATEWAY = {"app.kubernetes.io/name": "trident", "app.kubernetes.io/component": "gateway"}
REDIS = {"app.kubernetes.io/name": "trident-redis"}
ROLLOUT = {"app.kubernetes.io/name": "trident-rollout"}
PICKER = {"llm-d-router-gateway": "trident-epp"}
HTTP, GRPC, METRICS, PUBLIC, PRIVATE, TLS, STORE, DNS, OTLP = 8000, 8001, 8002, 8080, 8081, 8443, 6379, 53, 4318
API = (443, 6443)
SEPARATE = ("gateway", "multi-model", "redis")


def ours(labels: dict[str, str]) -> Place:
    """A pod in the namespace of the manifests."""
    return Place(labels, "trident", {"app.kubernetes.io/name": "trident"})


def policies(overlay: str) -> list[Object]:
    """The policies of an overlay."""
    return objects(overlay, "NetworkPolicy")


places = st.builds(
    Place,
    labels=st.sampled_from([{}, SERVER, GATEWAY, REDIS, PICKER, ROLLOUT, {"app.kubernetes.io/component": "server"}]),
    namespace=st.sampled_from(["trident", "default", "kube-system", "ingress", "monitoring"]),
    namespace_labels=st.sampled_from([{}, {"trident-access": "ingress"}, {"trident-access": "monitoring"}]),
) | st.builds(ours, st.sampled_from([SERVER, GATEWAY, REDIS, PICKER, ROLLOUT]))
outside = st.builds(Place, address=st.sampled_from(["192.0.2.1", "169.254.20.10", "169.254.169.254", "10.0.0.1"]))
ports = st.sampled_from([HTTP, GRPC, METRICS, PUBLIC, PRIVATE, TLS, STORE, DNS, OTLP, 22, *API])


def in_design(overlay: str, source: Place, target: Place, port: int, protocol: str) -> bool:
    """Whether the design has a way, written without a look at the policies."""

    def kind(place: Place) -> str:
        if place.namespace != "trident":
            return "other"
        kinds = (
            (SERVER, "server"), (GATEWAY, "gateway"), (REDIS, "redis"), (PICKER, "picker"), (ROLLOUT, "rollout"),
        )  # fmt: skip
        return next((name for labels, name in kinds if place.labels == labels), "other")

    to, by = kind(target), kind(source)
    access, is_tcp = source.namespace_labels.get("trident-access"), protocol == "TCP"
    held = ("server", "gateway", *{"redis": ["redis"], "canary": ["rollout"]}.get(overlay, []))
    inside: dict[tuple[str, str], tuple[int, ...]] = (
        {("gateway", "server"): (HTTP, METRICS)} if overlay in SEPARATE else {}
    )
    if overlay == "redis":
        inside |= {("server", "redis"): (STORE,), ("gateway", "redis"): (STORE,)}
    if overlay == "canary":
        inside |= {("rollout", "server"): (PUBLIC, PRIVATE)}
    if is_tcp and port in inside.get((by, to), ()):
        return True
    may_enter = to not in held or (
        is_tcp
        and (
            (to == ("gateway" if overlay in SEPARATE else "server"), access, port)
            == (True, "ingress", TLS if overlay == "tls" else PUBLIC)
            or (to in ("server", "gateway") and access == "monitoring" and port in (METRICS, PRIVATE))
            or (overlay == "gie" and by == "picker" and to == "server" and port == METRICS)
        )
    )
    may_leave = by not in held or (
        by != "redis"
        and (
            (port == DNS and (target.namespace == "kube-system" or target.address == "169.254.20.10"))
            or (
                overlay == "monitoring"
                and is_tcp
                and target.namespace_labels.get("trident-access") == "monitoring"
                and port == OTLP
            )
            or (by == "rollout" and is_tcp and port in API)
        )
    )
    return may_enter and may_leave


@pytest.mark.parametrize("overlay", [*OVERLAYS, *EXAMPLES])
@given(source=places | outside, target=places | outside, port=ports, protocol=st.sampled_from(["TCP", "UDP"]))
def test_network_policies_allow_what_the_design_names_and_nothing_else(
    overlay: str, source: Place, target: Place, port: int, protocol: str
) -> None:
    assert may_connect(policies(overlay), source, target, port, protocol) == in_design(
        overlay, source, target, port, protocol
    )


@pytest.mark.parametrize("overlay", [*OVERLAYS, *EXAMPLES])
def test_network_policies_let_everything_through_that_a_deployment_needs(overlay: str) -> None:
    ingress = Place({}, "ingress", {"trident-access": "ingress"})
    monitoring = Place({}, "monitoring", {"trident-access": "monitoring"})
    dns = Place({"k8s-app": "kube-dns"}, "kube-system")
    held = policies(overlay)
    for workload in workloads(overlay):
        here = ours(pod_labels(workload))
        listened = container_ports(workload)
        for port in listened & {PUBLIC, TLS}:
            assert may_connect(held, ingress, here, port)
        for port in listened & {METRICS, PRIVATE}:
            assert may_connect(held, monitoring, here, port)
            assert not may_connect(held, ingress, here, port)
        assert not may_connect(held, ingress, here, HTTP)
        if workload["metadata"]["name"].startswith("trident-redis"):
            assert not may_connect(held, here, dns, DNS)
        else:
            assert may_connect(held, here, dns, DNS, "UDP")


def test_network_policies_metadata_of_the_cloud_is_out_of_reach() -> None:
    for overlay in OVERLAYS:
        assert not may_connect(policies(overlay), ours(SERVER), Place(address="169.254.169.254"), 80)


def policy(**spec: object) -> Object:
    """One policy of namespace a."""
    return {"metadata": {"namespace": "a"}, "spec": {"podSelector": {}, "policyTypes": ["Ingress"], **spec}}


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ({}, False),  # selects, and allows nothing
        ({"ingress": [{}]}, True),  # a rule without peers and ports
        ({"ingress": [{"from": [{"podSelector": {}}]}]}, False),  # pods of the policy's own namespace
        ({"ingress": [{"from": [{"namespaceSelector": {}}]}]}, True),
        ({"ingress": [{"from": [{"namespaceSelector": {}, "podSelector": {"matchLabels": {"x": "2"}}}]}]}, False),
        ({"ingress": [{"from": [{"namespaceSelector": {}}, {"podSelector": {"matchLabels": {"x": "2"}}}]}]}, True),
        ({"ingress": [{"from": [{"ipBlock": {"cidr": "10.1.0.0/16"}}]}]}, True),
        ({"ingress": [{"from": [{"ipBlock": {"cidr": "10.1.0.0/16", "except": ["10.1.0.0/24"]}}]}]}, False),
        ({"ingress": [{"ports": [{"port": 79, "endPort": 81}]}]}, True),
        ({"ingress": [{"ports": [{"port": 80, "protocol": "UDP"}]}]}, False),
        ({"podSelector": {"matchLabels": {"x": "9"}}}, True),  # is about others
        ({"policyTypes": ["Egress"]}, True),  # is about the other direction
        ({"ingress": [{"from": [{"namespaceSelector": {"matchExpressions": [
            {"key": "kubernetes.io/metadata.name", "operator": "In", "values": ["b"]}]}}]}]}, True),
    ],
)  # fmt: skip
def test_network_policy_evaluator_reads_policies_as_their_api_defines(spec: dict[str, object], expected: bool) -> None:
    target, source = Place({"x": "0"}, "a"), Place({"x": "1"}, "b")
    assert may_connect([policy(**spec)], source, target, 80) == expected


def test_network_policies_the_test_notices_a_port_too_many() -> None:
    held = copy.deepcopy(policies("cpu"))
    next(one for one in held if one["metadata"]["name"] == "trident-public")["spec"]["ingress"][0]["ports"].append(
        {"protocol": "TCP", "port": HTTP}
    )
    ingress = Place({}, "ingress", {"trident-access": "ingress"})
    assert may_connect(held, ingress, ours(SERVER), HTTP)
    assert not in_design("cpu", ingress, ours(SERVER), HTTP, "TCP")
