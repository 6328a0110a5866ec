"""The options of `trident gateway`.

Owns their names and what their help says. Never reads a command line.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from trident_gateway.settings import GatewaySettings, JwtSettings
from trident_tools.gateway_settings.reading import LIMITS_STORE_VARIABLE, METRICS_PORT, OTLP_VARIABLE


def add_gateway_arguments(parser: argparse.ArgumentParser) -> None:
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
        "--server-dns",
        metavar="URL",
        help="every address of this name is a server, such as http://trident-pods:8000; looked up every 5 s",
    )
    group.add_argument(
        "--server-dns-metrics-port",
        type=int,
        default=METRICS_PORT,
        metavar="N",
        help="the metrics port of each of them (default: %(default)s)",
    )
    group.add_argument(
        "--routes",
        type=Path,
        metavar="FILE",
        help="stable servers, a canary and its weight, as `trident rollout` writes them; read again when changed",
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
    group.add_argument(
        "--agent-port",
        type=int,
        default=defaults.agent_port,
        metavar="N",
        help="for the agent check of HAProxy, on the private address; 0 for none (default: %(default)s)",
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
        f"variable (default: ${LIMITS_STORE_VARIABLE}, or none)",
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
        "--otlp", metavar="URL", help=f"send traces to this collector, over HTTP (default: ${OTLP_VARIABLE}, or none)"
    )
    group.add_argument("--log-file", type=Path, metavar="FILE", help="write the request log here, not to the output")
    group.add_argument("--quiet", action="store_true", help="print nothing but errors")
