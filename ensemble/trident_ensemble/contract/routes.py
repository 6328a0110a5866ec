"""The routes file: which servers are the stable side and which the canary, and how many callers the canary has.

Owns the format, which `trident rollout` writes and the gateway reads. Never touches a file, and knows no caller.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from trident_ensemble.contract.errors import ConfigError

FORMAT = 1


@dataclass(frozen=True)
class RouteServer:
    """One server of a side.

    Args:
        url: of its HTTP port, such as `http://10.0.0.7:8000`.
        metrics_url: of its metrics port, such as `http://10.0.0.7:8002`.
    """

    url: str
    metrics_url: str


@dataclass(frozen=True)
class Side:
    """The servers of the stable side, or of the canary."""

    servers: tuple[RouteServer, ...]


@dataclass(frozen=True)
class Routes:
    """Both sides, and how callers are divided between them.

    Args:
        stable: may have no server where the canary has all callers; None for the servers of the gateway's command line.
        canary: has a server at least; None for no canary.
        weight: percent of callers whose requests go to the canary, from 0 to 100; 0 without a canary.

    Raises:
        ConfigError: what is said of one side contradicts the other; names the key.
    """

    stable: Side | None = None
    canary: Side | None = None
    weight: float = 0.0

    def __post_init__(self) -> None:
        """Refuse routes by which a caller would have no server."""
        if not 0 <= self.weight <= 100:
            raise ConfigError(f"canary.weight: {self.weight} is not between 0 and 100")
        if self.canary is None and self.weight:
            raise ConfigError("canary: missing, though its weight is above 0")
        if self.canary is not None and not self.canary.servers:
            raise ConfigError("canary.servers: there is none; leave `canary` out where there is no canary")
        if self.stable is not None and not self.stable.servers and self.weight < 100:
            raise ConfigError("stable.servers: there is none, which needs a canary of weight 100")
        seen: set[str] = set()
        for where, side in (("stable", self.stable), ("canary", self.canary)):
            for server in () if side is None else side.servers:
                if server.url in seen:
                    raise ConfigError(f"{where}.servers: names {server.url} once more; each server has one place")
                seen.add(server.url)


def render_routes(routes: Routes) -> str:
    """Return the text of a routes file, from which `parse_routes` makes the same routes."""
    content: dict[str, Any] = {"format": FORMAT}
    if routes.stable is not None:
        content["stable"] = {"servers": _rendered(routes.stable)}
    if routes.canary is not None:
        weight = int(routes.weight) if routes.weight == int(routes.weight) else routes.weight
        content["canary"] = {"servers": _rendered(routes.canary), "weight": weight}
    return json.dumps(content, indent=2) + "\n"


def parse_routes(text: str) -> Routes:
    """Read the text of a routes file.

    Raises:
        ConfigError: it is not one; names the key.
    """
    try:
        raw = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"is not JSON: {error}") from None
    values = _object(raw, "", required={"format"}, optional={"stable", "canary"})
    if type(values["format"]) is not int or values["format"] != FORMAT:
        raise ConfigError(f"format: {values['format']!r} is not known here; must be {FORMAT}")
    stable = canary = None
    weight = 0.0
    if "stable" in values:
        stable = _side(_object(values["stable"], "stable", required={"servers"}), "stable")
    if "canary" in values:
        entry = _object(values["canary"], "canary", required={"servers", "weight"})
        canary = _side(entry, "canary")
        if type(entry["weight"]) not in {int, float}:
            raise ConfigError(f"canary.weight: must be a number, not {entry['weight']!r}")
        weight = entry["weight"]
    return Routes(stable, canary, weight)


def _rendered(side: Side) -> list[dict[str, str]]:
    return [{"url": server.url, "metrics_url": server.metrics_url} for server in side.servers]


def _side(entry: Mapping[str, Any], where: str) -> Side:
    servers = entry["servers"]
    if not isinstance(servers, list):
        raise ConfigError(f"{where}.servers: must be a list")
    return Side(tuple(_server(raw, f"{where}.servers[{index}]") for index, raw in enumerate(servers)))


def _server(raw: object, where: str) -> RouteServer:
    values = _object(raw, where, required={"url", "metrics_url"})
    return RouteServer(_url(values["url"], f"{where}.url"), _url(values["metrics_url"], f"{where}.metrics_url"))


def _url(raw: object, where: str) -> str:
    """Return a URL without a slash at its end."""
    text = raw.rstrip("/") if isinstance(raw, str) else ""
    try:
        parts = urlsplit(text)
        is_good = parts.scheme == "http" and bool(parts.hostname) and bool(parts.port)
    except ValueError:
        is_good = False
    if not is_good or parts.path or parts.query or parts.fragment or parts.username is not None or not text.isascii():
        raise ConfigError(f"{where}: {raw!r} is not a URL of the form http://HOST:PORT")
    return text


def _object(raw: object, where: str, *, required: Collection[str], optional: Collection[str] = ()) -> Mapping[str, Any]:
    prefix = f"{where}." if where else ""
    if not isinstance(raw, dict):
        raise ConfigError(f"{where or 'the content'}: must be an object")
    for key in raw:
        if key not in required and key not in optional:
            raise ConfigError(f"{prefix}{key}: unknown key")
    for key in sorted(required):
        if key not in raw:
            raise ConfigError(f"{prefix}{key}: missing")
    return raw
