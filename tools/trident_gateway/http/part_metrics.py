"""The metrics of parts that count by themselves.

Owns their names and labels. Never counts anything: each is read when the page is.
"""

from __future__ import annotations

from trident_gateway.access.authenticator import Authenticator
from trident_gateway.http.listening import Port
from trident_gateway.limits.limiter import Limiter
from trident_gateway.observing.metrics import Metrics
from trident_gateway.upstream.router import Router


def add_metrics_of_parts(
    metrics: Metrics, router: Router, limiter: Limiter, authenticator: Authenticator, port: Port
) -> None:
    """Have the page show what servers, limits, keys and connections count."""
    metrics.add(
        "counter",
        "upstream_picks_total",
        "Calls to servers, and why this one",
        ("server", "reason", "side"),
        router.picks.items,
    )
    metrics.add(
        "counter",
        "retries_total",
        "Calls that were tried once more",
        ("reason",),
        lambda: [((reason,), number) for reason, number in router.retries.items()],
    )
    metrics.add(
        "gauge",
        "server_ready",
        "1 for a server in rotation",
        ("server", "side"),
        lambda: [((one.server, one.side), one.is_ready) for one in router.status()],
    )
    metrics.add(
        "gauge",
        "server_inflight",
        "Calls that a server has",
        ("server", "side"),
        lambda: [((one.server, one.side), one.num_in_flight) for one in router.status()],
    )
    metrics.add(
        "counter",
        "server_ejections_total",
        "Times that a server was taken out of rotation",
        ("server", "side"),
        lambda: [((one.server, one.side), one.num_ejections) for one in router.status()],
    )
    metrics.add(
        "gauge",
        "route_weight",
        "Percent of callers whose requests go to a side",
        ("side",),
        lambda: [((side,), weight) for side, weight in router.weights.items()],
    )
    metrics.add(
        "counter",
        "routes_failures_total",
        "Times that the routes file had changed and could not be understood",
        (),
        lambda: [((), router.membership.num_routes_failures)],
    )
    metrics.add(
        "counter",
        "dns_failures_total",
        "Times that the name of the servers could not be looked up",
        (),
        lambda: [((), router.membership.num_dns_failures)],
    )
    metrics.add(
        "gauge",
        "model_conflicts",
        "1 for a model on which servers do not agree, so that only some of them serve it",
        ("model",),
        lambda: [((name,), 1) for name in sorted(router.conflicts)],
    )
    metrics.add(
        "gauge",
        "limits_store_up",
        "0 while the shared store of limits is gone",
        (),
        lambda: [((), limiter.is_store_up)],
    )
    metrics.add(
        "counter",
        "limits_store_losses_total",
        "Times that the shared store of limits was lost",
        (),
        lambda: [((), limiter.num_store_losses)],
    )
    metrics.add(
        "gauge",
        "reservations",
        "Requests that hold a part of a limit",
        (),
        lambda: [((), limiter.num_held)],
    )
    metrics.add(
        "gauge",
        "stale_files",
        "Files of keys and plans that have changed and cannot be understood",
        (),
        lambda: [((), authenticator.num_stale_files)],
    )
    metrics.add(
        "counter",
        "provider_failures_total",
        "Times that the identity provider's keys could not be fetched",
        (),
        lambda: [((), authenticator.num_failed_fetches)],
    )
    metrics.add("gauge", "connections", "Open connections of clients", (), lambda: [((), port.num_connections)])
    metrics.add(
        "counter",
        "connection_refusals_total",
        "What was refused before it was a request, by the status of the answer",
        ("code",),
        lambda: [((str(status),), number) for status, number in port.refusals.items()],
    )
