"""The weights of two backends in an HTTPRoute of Kubernetes' Gateway API.

Owns how percents become weights, and when a gateway has taken them. Weights that somebody else has set meanwhile are
never overwritten upwards.
"""

from __future__ import annotations

import math
from copy import deepcopy
from typing import Any
from urllib.parse import quote

from trident_ensemble.contract.errors import ConfigError, ServerError
from trident_tools.rollouts.kubernetes import ConflictError, KubeApi
from trident_tools.rollouts.routes_file import ForeignChangeError

_MAX_TRIES = 5


class HttpRoute:
    """One route with a stable and a canary backend.

    Args:
        api: the API server.
        name: `NAMESPACE/NAME` of the route.
        stable: name of the stable backend, a Service or an InferencePool.
        canary: name of the other one.

    Raises:
        ConfigError: the name has no namespace.
    """

    def __init__(self, api: KubeApi, name: str, stable: str, canary: str) -> None:
        namespace, slash, route = name.partition("/")
        if not slash or not namespace or not route or "/" in route:
            raise ConfigError(f"--httproute {name}: must be NAMESPACE/NAME")
        self._api = api
        self._name = name
        self._path = (
            f"/apis/gateway.networking.k8s.io/v1/namespaces/{quote(namespace, safe='')}/httproutes/"
            f"{quote(route, safe='')}"
        )
        self._stable, self._canary = stable, canary

    def weight(self) -> float:
        """Return the percent of requests that the canary is to have.

        Raises:
            ServerError: the route cannot be read, or does not have both backends.
        """
        return self._weight_of(self._api.get(self._path))

    def shown_weight(self) -> float:
        """Return the weight of the canary once every gateway of the route has taken it; NaN before.

        Raises:
            ServerError: the route cannot be read, or does not have both backends.
        """
        route = self._api.get(self._path)
        weight = self._weight_of(route)
        parents = route.get("status", {}).get("parents", [])
        generation = route.get("metadata", {}).get("generation", 0)
        return weight if parents and all(_has_taken(parent, generation) for parent in parents) else math.nan

    def set_weight(self, weight: float, before: float) -> None:
        """Give the canary a weight.

        Args:
            weight: in percent.
            before: the weight that this rollout has set last. One that is found to differ is somebody else's, and is
                not raised.

        Raises:
            ForeignChangeError: somebody else has set a weight.
            ServerError: the route cannot be changed.
        """
        for _ in range(_MAX_TRIES):
            route = self._api.get(self._path)
            found = self._weight_of(route)
            if math.isclose(found, weight):
                return
            if weight and not weight <= found and not math.isclose(found, before):
                raise ForeignChangeError(
                    f"--httproute {self._name}: its canary has {found:g} %, which this rollout has not set"
                )
            rules = deepcopy(route["spec"]["rules"])
            scale = 1 if weight == int(weight) else 100
            for rule in rules:
                for backend in self._both(rule):
                    share = weight if backend["name"] == self._canary else 100 - weight
                    backend["weight"] = round(share * scale)
            # With the version, somebody else's change in the meantime makes this one fail.
            version = route["metadata"]["resourceVersion"]
            try:
                self._api.patch(self._path, {"metadata": {"resourceVersion": version}, "spec": {"rules": rules}})
            except ConflictError:
                continue
            return
        raise ServerError(f"--httproute {self._name}: changes all the time")

    def take_back(self) -> float:
        """Give everything to the stable backend; return the weight that the canary had.

        Raises:
            ServerError: the route cannot be changed.
        """
        weight = self.weight()
        self.set_weight(0.0, weight)
        return weight

    def _both(self, rule: dict[str, Any]) -> list[dict[str, Any]]:
        """Return the two backends of a rule; nothing if it does not have both."""
        backends = {
            one["name"]: one for one in rule.get("backendRefs", ()) if one.get("name") in (self._stable, self._canary)
        }
        return list(backends.values()) if len(backends) == 2 else []

    def _weight_of(self, route: dict[str, Any]) -> float:
        found: set[float] = set()
        for rule in route.get("spec", {}).get("rules", ()):
            weights = {backend["name"]: float(backend.get("weight", 1)) for backend in self._both(rule)}
            if total := sum(weights.values()):
                found.add(weights[self._canary] / total * 100)
        if not found:
            raise ServerError(
                f"--httproute {self._name}: has no rule with both backends, {self._stable} and {self._canary}"
            )
        # Rules that differ are the weight of none of them.
        return found.pop() if len(found) == 1 else math.nan


def _has_taken(parent: dict[str, Any], generation: int) -> bool:
    return any(
        condition.get("type") == "Accepted"
        and condition.get("status") == "True"
        and condition.get("observedGeneration", 0) >= generation
        for condition in parent.get("conditions", ())
    )
