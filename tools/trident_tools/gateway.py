"""`trident gateway`: OpenAI's API in front of running servers.

Owns the options of the command, which become the gateway's settings once, and the message at its start. Never answers a
request: the package `trident_gateway` does.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from pathlib import Path
from urllib.parse import urlsplit

from trident_ensemble.contract.errors import ConfigError, TridentError
from trident_gateway.settings import GatewaySettings, HttpLimits, JwtSettings, ServerAddress, TlsSettings
from trident_tools.server.openai_examples import base_url, openai_examples

_METRICS_PORT = 8002
_LIMITS_STORE_VARIABLE = "TRIDENT_LIMITS_STORE"
_OTLP_VARIABLE = "OTEL_EXPORTER_OTLP_ENDPOINT"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    defaults = GatewaySettings()
    group = parser.add_argument_group("servers behind the gateway")
    group.add_argument(
        "--server",
        action="append",
        metavar="URL",
        help="a server's HTTP port; repeatable (default: http://127.0.0.1:8000)",
    )
    group.add_argument(
        "--metrics-url",
        action="append",
        metavar="URL",
        help="its metrics port, one for each --server in their order (default: the server's host, port 8002)",
    )
    group.add_argument(
        "--request-timeout",
        type=float,
        default=defaults.request_timeout_s,
        metavar="S",
        help="seconds for a request whose client names no timeout (default: %(default)g)",
    )
    group = parser.add_argument_group("ports")
    group.add_argument(
        "--host",
        default=defaults.host,
        help="address of the public port; another one needs keys (default: %(default)s)",
    )
    group.add_argument("--port", type=int, default=defaults.port, metavar="N", help="default: %(default)s")
    group.add_argument(
        "--private-host",
        default=defaults.private_host,
        metavar="HOST",
        help="address of the port for metrics, probes and drain (default: %(default)s)",
    )
    group.add_argument(
        "--private-port", type=int, default=defaults.private_port, metavar="N", help="0 for none (default: %(default)s)"
    )
    group.add_argument("--tls-cert", type=Path, metavar="FILE", help="certificates in PEM; read again when they change")
    group.add_argument("--tls-key", type=Path, metavar="FILE", help="their key")
    group = parser.add_argument_group("who may use it, and how much")
    group.add_argument(
        "--keys", type=Path, metavar="FILE", help="keys that `trident keys` made; read again when changed"
    )
    group.add_argument(
        "--jwks-url", metavar="URL", help="take JSON Web Tokens signed with these public keys; also the path of a file"
    )
    group.add_argument("--jwt-issuer", metavar="TEXT", help="what their `iss` must be")
    group.add_argument("--jwt-audience", metavar="TEXT", help="what their `aud` must contain")
    group.add_argument(
        "--jwt-algorithms",
        default=",".join(JwtSettings.algorithms),
        metavar="NAMES",
        help="signatures that are taken (default: %(default)s)",
    )
    group.add_argument(
        "--jwt-tenant-claim",
        default=JwtSettings.tenant_claim,
        metavar="NAME",
        help="the claim that names the tenant (default: %(default)s)",
    )
    group.add_argument(
        "--jwt-models-claim",
        default=JwtSettings.models_claim,
        metavar="NAME",
        help="the claim that lists models; a token without it may use all (default: %(default)s)",
    )
    group.add_argument(
        "--jwt-plan-claim",
        default=JwtSettings.plan_claim,
        metavar="NAME",
        help="the claim that names the plan (default: %(default)s)",
    )
    group.add_argument("--plans", type=Path, metavar="FILE", help="limits, models and priorities by plan, for tokens")
    group.add_argument(
        "--limits-store",
        metavar="URL",
        help="count limits in this Redis or Valkey, for several gateways together; a password is better kept in the "
        f"variable (default: ${_LIMITS_STORE_VARIABLE}, or none)",
    )
    group.add_argument(
        "--limits-fail",
        choices=("open", "closed"),
        default="open",
        help="while the store is gone: go on with this gateway's share, or refuse (default: %(default)s)",
    )
    group.add_argument(
        "--replicas",
        type=int,
        default=defaults.num_replicas,
        metavar="N",
        help="gateways that share the store, for that share (default: %(default)s)",
    )
    group.add_argument(
        "--share-prefix-cache",
        action="store_true",
        help="let tenants find each other's prompts in the prefix cache, which shows in their latency",
    )
    group = parser.add_argument_group("requests")
    group.add_argument(
        "--allow-unknown-fields",
        action="store_true",
        help="ignore unknown fields, and list them in the header x-trident-ignored, rather than refuse them",
    )
    group.add_argument(
        "--relax-tools",
        action="store_true",
        help="with tool_choice auto, hold calls to schemas only where a tool says strict (default: always)",
    )
    group.add_argument(
        "--max-body",
        type=int,
        default=defaults.http.max_body_bytes,
        metavar="BYTES",
        help="of a request (default: %(default)s)",
    )
    group.add_argument(
        "--max-n", type=int, default=defaults.max_n, metavar="N", help="answers to one prompt (default: %(default)s)"
    )
    group.add_argument(
        "--keep-alive",
        type=float,
        default=defaults.keep_alive_s,
        metavar="S",
        help="send a comment into a stream that is silent for so long; 0 for never (default: %(default)g)",
    )
    group = parser.add_argument_group("the end")
    group.add_argument(
        "--drain-delay",
        type=float,
        default=defaults.drain_delay_s,
        metavar="S",
        help="after a signal: seconds for load balancers to turn elsewhere (default: %(default)g)",
    )
    group.add_argument(
        "--drain-timeout",
        type=float,
        default=defaults.drain_timeout_s,
        metavar="S",
        help="then: seconds for running requests to end (default: %(default)g)",
    )
    group = parser.add_argument_group("what is seen of it")
    group.add_argument(
        "--otlp", metavar="URL", help=f"send traces to this collector, over HTTP (default: ${_OTLP_VARIABLE}, or none)"
    )
    group.add_argument("--log-file", type=Path, metavar="FILE", help="write the request log here, not to the output")
    group.add_argument("--quiet", action="store_true", help="print nothing but errors")


def run(args: argparse.Namespace) -> int:
    """Serve until a signal; return 0 after a clean drain, 3 if requests were cut.

    Raises:
        TridentError: options contradict each other, or a file or a port cannot be used.
    """
    settings = read_settings(args)
    try:
        from trident_gateway.server import Gateway  # noqa: PLC0415 (what it needs is an extra of the package)
    except ModuleNotFoundError as error:
        raise TridentError(f"{error.name} is not installed: pip install 'trident-llm[gateway]'") from error
    log = logging.getLogger("trident_gateway")
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("trident gateway: %(message)s"))
    log.addHandler(handler)
    log.setLevel(logging.ERROR if settings.is_quiet else logging.INFO)

    def say(text: str) -> None:
        if not settings.is_quiet:
            print(text, flush=True)

    def announce(models: dict[str, bool], port: int) -> None:
        say(announcement(settings, models, port))

    return Gateway(settings, announce=announce, say=say, complain=_complain).run()


def read_settings(args: argparse.Namespace) -> GatewaySettings:
    """Return the settings that a command line asks for.

    Raises:
        ConfigError: an option is wrong, or contradicts another one.
    """
    return GatewaySettings(
        servers=_servers(args.server or ["http://127.0.0.1:8000"], args.metrics_url or []),
        host=args.host,
        port=_port("--port", args.port),
        private_host=args.private_host,
        private_port=_port("--private-port", args.private_port),
        keys_file=args.keys,
        jwt=_jwt(args),
        limits_store=args.limits_store or os.environ.get(_LIMITS_STORE_VARIABLE) or None,
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
        otlp_url=args.otlp or os.environ.get(_OTLP_VARIABLE) or None,
        log_file=args.log_file,
        is_quiet=args.quiet,
        http=HttpLimits(max_body_bytes=args.max_body),
    )


def announcement(settings: GatewaySettings, models: dict[str, bool], port: int) -> str:
    """Return what is printed once a model is there.

    Args:
        settings: of the gateway.
        models: name -> whether it takes messages.
        port: the public one.
    """
    url = base_url(settings.host, port, speaks_tls=settings.tls is not None)
    name = min(models)
    examples = openai_examples(url, name, takes_messages=models[name], asks_for_keys=settings.asks_for_keys)
    access = (
        "keys are asked for"
        if settings.asks_for_keys
        else "no keys: everybody on this machine may use it, and nobody else can reach it"
    )
    return f"OpenAI's API at {url} ({access})\n  models   {', '.join(sorted(models))}\nTry:\n{examples}"


def _complain(text: str) -> None:
    print(f"trident gateway: {text}", file=sys.stderr, flush=True)


def _servers(urls: list[str], metrics_urls: list[str]) -> tuple[ServerAddress, ...]:
    if metrics_urls and len(metrics_urls) != len(urls):
        raise ConfigError(f"--metrics-url: {len(metrics_urls)} of them for {len(urls)} servers; give one for each")
    servers = []
    for index, url in enumerate(urls):
        host = _checked("--server", url)
        metrics = metrics_urls[index] if metrics_urls else f"http://{host}:{_METRICS_PORT}"
        _checked("--metrics-url", metrics)
        servers.append(ServerAddress(url.rstrip("/"), metrics.rstrip("/").removesuffix("/metrics")))
    if len({server.url for server in servers}) != len(servers):
        raise ConfigError("--server: names one server twice")
    return tuple(servers)


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
