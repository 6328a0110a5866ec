"""The two ways in which callers are moved: the routes file of gateways, and an HTTPRoute of Kubernetes.

Owns what a rollout needs of either. Never decides on a weight.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

from trident_ensemble.contract.errors import ConfigError, ServerError
from trident_ensemble.contract.routes import RouteServer
from trident_tools.rollouts.http_route import HttpRoute
from trident_tools.rollouts.routes_file import RoutesFile


class Routing(Protocol):
    """A way to move callers.

    Attributes:
        target: what it moves them to, for messages and for the state.
    """

    target: tuple[str, ...]

    def check_free(self) -> None:
        """Refuse to begin where a canary has callers.

        Raises:
            TridentError: one has, or that cannot be read.
        """
        ...

    def prepare(self) -> None:
        """Make the canary known, without a caller.

        Raises:
            TridentError: that cannot be done, or another canary has callers.
        """
        ...

    def set_weight(self, weight: float, before: float) -> None:
        """Give the canary its share of callers.

        Args:
            weight: percent of callers that the canary shall have.
            before: the weight that this rollout has set before.

        Raises:
            ForeignChangeError: somebody else has moved them.
            ServerError: the weight cannot be written.
        """
        ...

    def shown(self, weights: frozenset[float] | None) -> frozenset[float] | None:
        """Return the weights in force; None where they cannot be read.

        Args:
            weights: those that the gateways' own pages show.
        """
        ...


class FileRouting:
    """Weights in a routes file, which gateways read and show.

    Args:
        file: the routes file.
        servers: the canary's.
    """

    def __init__(self, file: RoutesFile, servers: Sequence[RouteServer]) -> None:
        self.target = tuple(server.url for server in servers)
        self._file = file
        self._servers = tuple(servers)

    def check_free(self) -> None:
        """Check that no canary in the file has callers."""
        self._file.check_free()

    def prepare(self) -> None:
        """Put the canary into the file, with the weight 0."""
        self._file.add_canary(self._servers)

    def set_weight(self, weight: float, before: float) -> None:
        """Write a weight into the file."""
        self._file.set_weight(self._servers, weight, before)

    def shown(self, weights: frozenset[float] | None) -> frozenset[float] | None:
        """Return what the gateways show."""
        return weights


class RouteRouting:
    """Weights in an HTTPRoute, whose status says when gateways have taken them.

    Args:
        route: the HTTPRoute.
        target: its name and those of its backends.
    """

    def __init__(self, route: HttpRoute, target: Sequence[str]) -> None:
        self.target = tuple(target)
        self._route = route

    def prepare(self) -> None:
        """Check once more that the canary has no requests; the route knows it already."""
        self.check_free()

    def check_free(self) -> None:
        """Check that the canary has no requests yet."""
        weight = self._route.weight()
        if not math.isclose(weight, 0.0):
            raise ConfigError(
                f"--httproute {self.target[0]}: its canary has {weight:g} % of the requests; `trident rollout undo` "
                "takes them back, `trident rollout start --resume` goes on with it"
            )

    def set_weight(self, weight: float, before: float) -> None:
        """Patch both weights."""
        self._route.set_weight(weight, before)

    def shown(self, weights: frozenset[float] | None) -> frozenset[float] | None:
        """Return what the route's status says; None also while a gateway's page cannot be read."""
        if weights is None:
            return None
        try:
            return frozenset({self._route.shown_weight()})
        except ServerError:
            return None
