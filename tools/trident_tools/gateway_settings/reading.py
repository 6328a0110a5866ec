"""The settings of a gateway, as a command line asks for them.

Owns the forms of the options' values, and what follows where they contradict each other. Never starts anything.
"""

from __future__ import annotations

import argparse
import os
from urllib.parse import urlsplit

from trident_ensemble.contract.errors import ConfigError
from trident_gateway.settings import (
    GatewaySettings,
    HttpLimits,
    JwtSettings,
    ServerAddress,
    ServerName,
    TlsSettings,
)

METRICS_PORT = 8002
LIMITS_STORE_VARIABLE = "TRIDENT_LIMITS_STORE"
OTLP_VARIABLE = "OTEL_EXPORTER_OTLP_ENDPOINT"


def read_settings(args: argparse.Namespace) -> GatewaySettings:
    """Return the settings that a command line asks for.

    Raises:
        ConfigError: an option is wrong, or contradicts another one.
    """
    return GatewaySettings(
        servers=_servers(args),
        server_dns=_server_dns(args),
        routes_file=args.routes,
        host=args.host,
        port=_port("--port", args.port),
        private_host=args.private_host,
        private_port=_port("--private-port", args.private_port),
        agent_port=_port("--agent-port", args.agent_port),
        keys_file=args.keys,
        jwt=_jwt(args),
        limits_store=args.limits_store or os.environ.get(LIMITS_STORE_VARIABLE) or None,
        limits_fail_open=args.limits_fail == "open",
        num_replicas=args.replicas,
        tls=_tls(args),
        drain_delay_s=args.drain_delay,
        drain_timeout_s=args.drain_timeout,
        keep_alive_s=args.keep_alive,
        request_timeout_s=args.request_timeout,
        max_n=args.max_n,
        allow_unknown_fields=args.allow_unknown_fields,
        relax_tools=args.relax_tools,
        share_prefix_cache=args.share_prefix_cache,
        otlp_url=args.otlp or os.environ.get(OTLP_VARIABLE) or None,
        log_file=args.log_file,
        is_quiet=args.quiet,
        http=HttpLimits(max_body_bytes=args.max_body),
    )


def _servers(args: argparse.Namespace) -> tuple[ServerAddress, ...]:
    metrics_urls = args.metrics_url or []
    if args.server_dns and not args.server and not metrics_urls:
        return ()
    urls = args.server or ["http://127.0.0.1:8000"]
    if metrics_urls and len(metrics_urls) != len(urls):
        raise ConfigError(f"--metrics-url: {len(metrics_urls)} of them for {len(urls)} servers; give one for each")
    servers = []
    for index, url in enumerate(urls):
        host = _checked("--server", url)
        metrics = metrics_urls[index] if metrics_urls else f"http://{host}:{METRICS_PORT}"
        _checked("--metrics-url", metrics)
        servers.append(ServerAddress(url.rstrip("/"), metrics.rstrip("/").removesuffix("/metrics")))
    if len({server.url for server in servers}) != len(servers):
        raise ConfigError("--server: names one server twice")
    return tuple(servers)


def _server_dns(args: argparse.Namespace) -> ServerName | None:
    if not args.server_dns:
        return None
    _checked("--server-dns", args.server_dns)
    parts = urlsplit(args.server_dns)
    assert parts.hostname is not None
    assert parts.port is not None
    return ServerName(parts.hostname, parts.port, _port("--server-dns-metrics-port", args.server_dns_metrics_port))


def _checked(option: str, url: str) -> str:
    """Return the host of a URL, with the brackets of an IPv6 address."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise ConfigError(f"{option} {url}: is not a URL: {error}") from None
    if parts.scheme != "http" or not host:
        raise ConfigError(f"{option} {url}: is not a URL like http://HOST:PORT")
    if port is None or parts.username or parts.query or parts.path.rstrip("/") not in ("", "/metrics"):
        raise ConfigError(f"{option} {url}: give host and port alone, such as http://127.0.0.1:8000")
    return f"[{host}]" if ":" in host else host


def _port(option: str, number: int) -> int:
    if not 0 <= number < 1 << 16:
        raise ConfigError(f"{option} {number}: is not between 0 and 65535")
    return number


def _jwt(args: argparse.Namespace) -> JwtSettings | None:
    asked = {"--jwks-url": args.jwks_url, "--jwt-issuer": args.jwt_issuer, "--jwt-audience": args.jwt_audience}
    missing = [option for option, value in asked.items() if not value]
    if len(missing) == len(asked):
        return None
    if missing:
        raise ConfigError(f"{', '.join(missing)}: missing; tokens need --jwks-url, --jwt-issuer and --jwt-audience")
    return JwtSettings(
        jwks_url=args.jwks_url,
        issuer=args.jwt_issuer,
        audience=args.jwt_audience,
        algorithms=tuple(name.strip() for name in args.jwt_algorithms.split(",")),
        tenant_claim=args.jwt_tenant_claim,
        models_claim=args.jwt_models_claim,
        plan_claim=args.jwt_plan_claim,
        plans_file=args.plans,
    )


def _tls(args: argparse.Namespace) -> TlsSettings | None:
    if args.tls_cert is None and args.tls_key is None:
        return None
    if args.tls_cert is None or args.tls_key is None:
        raise ConfigError("--tls-cert and --tls-key: give both or none")
    return TlsSettings(args.tls_cert, args.tls_key)
