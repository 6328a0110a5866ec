"""Who may reach whom by NetworkPolicies, as the API of networking.k8s.io/v1 defines it.

Owns the meaning of policies: they add up, one direction is open until a policy for it selects a pod, and a connection
needs both directions. Never the enforcement, which is the network plugin's.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.kubernetes.rendering import Object


@dataclass(frozen=True)
class Place:
    """A pod, or an address outside of the cluster.

    Args:
        labels: of the pod.
        namespace: its name; None outside of the cluster.
        namespace_labels: of the namespace, besides its name.
        address: of its network.
    """

    labels: Mapping[str, str] = field(default_factory=dict)
    namespace: str | None = None
    namespace_labels: Mapping[str, str] = field(default_factory=dict)
    address: str = "10.1.0.1"


def may_connect(policies: Iterable[Object], source: Place, target: Place, port: int, protocol: str = "TCP") -> bool:
    """Return whether a connection may be made, by the policies of both sides."""
    held = list(policies)
    way = (port, protocol)
    return _allows(held, "Egress", source, target, way) and _allows(held, "Ingress", target, source, way)


def _allows(policies: list[Object], direction: str, pod: Place, peer: Place, way: tuple[int, str]) -> bool:
    about = [
        one["spec"]
        for one in policies
        if pod.namespace == one["metadata"]["namespace"]
        and direction in one["spec"]["policyTypes"]
        and matches(one["spec"]["podSelector"], pod.labels)
    ]
    rules, peers = ("ingress", "from") if direction == "Ingress" else ("egress", "to")
    return not about or any(
        _is_port(rule.get("ports", []), *way) and _is_peer(rule.get(peers, []), peer, pod.namespace)
        for spec in about
        for rule in spec.get(rules, [])
    )


def _is_port(ports: list[dict[str, Any]], port: int, protocol: str) -> bool:
    return not ports or any(
        one.get("protocol", "TCP") == protocol
        and one.get("port", port) <= port <= one.get("endPort", one.get("port", port))
        for one in ports
    )


def _is_peer(peers: list[dict[str, Any]], place: Place, own_namespace: str | None) -> bool:
    return not peers or any(_is_one_peer(one, place, own_namespace) for one in peers)


def _is_one_peer(peer: dict[str, Any], place: Place, own_namespace: str | None) -> bool:
    if "ipBlock" in peer:
        address = ipaddress.ip_address(place.address)
        block = peer["ipBlock"]
        inside = address in ipaddress.ip_network(block["cidr"])
        return inside and not any(address in ipaddress.ip_network(one) for one in block.get("except", []))
    if place.namespace is None:
        return False
    if "namespaceSelector" in peer:
        labels = {**place.namespace_labels, "kubernetes.io/metadata.name": place.namespace}
        if not matches(peer["namespaceSelector"], labels):
            return False
    elif place.namespace != own_namespace:
        return False
    return matches(peer.get("podSelector", {}), place.labels)


def matches(selector: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    """Return whether a selector of labels matches; an empty one matches everything."""
    return selector.get("matchLabels", {}).items() <= labels.items() and all(
        {
            "In": labels.get(one["key"]) in one.get("values", []),
            "NotIn": labels.get(one["key"]) not in one.get("values", []),
            "Exists": one["key"] in labels,
            "DoesNotExist": one["key"] not in labels,
        }[one["operator"]]
        for one in selector.get("matchExpressions", [])
    )
