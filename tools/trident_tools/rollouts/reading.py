"""The options of `trident rollout`, as what they mean.

Owns how they belong together, and the messages where they do not. Never declares an option and never starts anything.
"""

from __future__ import annotations

import argparse
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from trident_ensemble.contract.errors import ConfigError
from trident_ensemble.contract.routes import Routes, RouteServer, Side
from trident_tools.rollouts.door import door_of_address, door_of_server
from trident_tools.rollouts.gates import GateLimits
from trident_tools.rollouts.http_route import HttpRoute
from trident_tools.rollouts.kubernetes import KubeApi, kube_address
from trident_tools.rollouts.machine import Plan
from trident_tools.rollouts.routes_file import RoutesFile
from trident_tools.rollouts.routing import FileRouting, RouteRouting, Routing
from trident_tools.rollouts.state_file import StateFile

if TYPE_CHECKING:
    from trident_tools.rollouts.gateways import GatewaySource
    from trident_tools.rollouts.operations import Opener

#: Of a server, where none is named.
_METRICS_PORT = 8002
LIMIT_NAMES = tuple(one.name for one in fields(GateLimits))


def read_plan(args: argparse.Namespace, stages: tuple[float, ...] | None = None) -> Plan:
    """Return the stages and the gates; those of a rollout that goes on are given.

    Raises:
        ConfigError: they lead nowhere; names the option.
    """
    return Plan(
        stages=tuple(args.stages) if stages is None else stages,
        hold_s=args.hold,
        max_hold_s=6 * args.hold if args.max_hold is None else args.max_hold,
        warm_up_s=args.warm_up,
        min_requests=args.min_requests,
        patience_s=args.patience,
        limits=GateLimits(**{name: getattr(args, f"max_{name}") for name in LIMIT_NAMES}),
    )


def read_routing(args: argparse.Namespace) -> Routing:
    """Return the way in which callers are moved.

    Raises:
        ConfigError: an option is wrong.
    """
    if args.routes is not None:
        return FileRouting(RoutesFile(args.routes), _servers(args))
    return RouteRouting(read_http_route(args), (args.httproute, args.stable_backend, args.canary_backend))


def read_http_route(args: argparse.Namespace) -> HttpRoute:
    """Return the HTTPRoute of a cluster.

    Raises:
        ConfigError: the cluster or the route is not named as they must be.
    """
    api = KubeApi(kube_address(args.kube_api))
    return HttpRoute(api, args.httproute, args.stable_backend, args.canary_backend)


def _servers(args: argparse.Namespace) -> tuple[RouteServer, ...]:
    given = args.to_metrics_url
    if given is not None and len(given) != len(args.to):
        raise ConfigError(f"--to-metrics-url: {len(given)} of them for {len(args.to)} servers; give one for each")
    servers = []
    for index, url in enumerate(args.to):
        servers.append(_server("--to", url, None if given is None else given[index]))
    # The contract refuses a server that is there twice.
    Routes(canary=Side(tuple(servers)))
    return tuple(servers)


def _server(option: str, url: str, metrics_url: str | None = None) -> RouteServer:
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    if parts.scheme != "http" or not host or not port or parts.path.rstrip("/"):
        raise ConfigError(f"{option} {url}: must be a server's HTTP port, such as http://127.0.0.1:8000")
    host = f"[{host}]" if ":" in host else host
    metrics = f"http://{host}:{_METRICS_PORT}" if metrics_url is None else metrics_url
    return RouteServer(url.rstrip("/"), metrics.rstrip("/").removesuffix("/metrics"))


def read_canary_openers(args: argparse.Namespace) -> tuple[Opener, ...]:
    """Return the ways to the servers of the canary, each alone.

    Raises:
        ConfigError: an option is wrong.
    """
    if args.routes is None:
        return tuple(partial(door_of_address, url, _key(args), args.patience) for url in args.to)
    return tuple(partial(door_of_server, server, args.patience) for server in _servers(args))


def read_stable_opener(args: argparse.Namespace) -> Opener | None:
    """Return a way to the stable side, to compare with; None where it is not known.

    Raises:
        ConfigError: an option or the routes file is wrong.
    """
    if args.routes is None:
        return args.compare_with and partial(door_of_address, args.compare_with, _key(args), args.patience)
    if args.compare_with is not None:
        return partial(door_of_server, _server("--compare-with", args.compare_with), args.patience)
    stable = RoutesFile(args.routes).read().stable
    return partial(door_of_server, stable.servers[0], args.patience) if stable and stable.servers else None


def read_sources(args: argparse.Namespace) -> list[GatewaySource]:
    """Return the gateways that are watched.

    Raises:
        ConfigError: some are missing, or do not belong here.
    """
    # It needs what reads metrics, an extra of the package.
    from trident_tools.rollouts.gateways import gateway_source  # noqa: PLC0415

    by_page = args.routes is None
    has_canary = args.canary_gateway or args.canary_gateway_dns
    if not (args.gateway or args.gateway_dns):
        raise ConfigError("--gateway: missing; give the private port of every gateway, such as http://127.0.0.1:8081")
    if by_page and not has_canary:
        raise ConfigError("--canary-gateway: missing; with --httproute the sides are told apart by their gateways")
    if not by_page and has_canary:
        raise ConfigError("--canary-gateway: is for --httproute; with --routes each gateway tells the sides apart")
    sides = ("stable", "canary") if by_page else (None, None)
    return [
        gateway_source(option, url, is_name=is_name, side=side)
        for option, urls, is_name, side in (
            ("--gateway", args.gateway, False, sides[0]),
            ("--gateway-dns", args.gateway_dns, True, sides[0]),
            ("--canary-gateway", args.canary_gateway, False, sides[1]),
            ("--canary-gateway-dns", args.canary_gateway_dns, True, sides[1]),
        )
        for url in urls
    ]


def read_state_file(args: argparse.Namespace) -> StateFile:
    """Return the file of the state, which lies beside the routes file or where it is named."""
    if args.state is not None:
        return StateFile(args.state)
    if args.routes is not None:
        path = args.routes.resolve()
        return StateFile(path.with_name(f"{path.name}.rollout"))
    return StateFile(Path(f"trident-rollout-{args.httproute.replace('/', '-')}.json"))


def _key(args: argparse.Namespace) -> str | None:
    if args.key_file is None:
        return None
    try:
        return str(args.key_file.read_text(encoding="ascii")).strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--key-file {args.key_file}: cannot be read: {error}") from None
