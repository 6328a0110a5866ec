"""The settings of one gateway.

Owns their names, defaults and bounds. Never reads the command line: `trident gateway` does, once, and everybody else
gets the parts that concern them.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from pathlib import Path

from trident_ensemble.contract.errors import ConfigError


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach an address or name."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@dataclass(frozen=True)
class ServerAddress:
    """One tritonserver behind the gateway.

    Args:
        url: of its HTTP port, such as `http://127.0.0.1:8000`.
        metrics_url: of its metrics port, such as `http://127.0.0.1:8002`.
    """

    url: str
    metrics_url: str

    @property
    def name(self) -> str:
        """What logs and metrics call it: `HOST:PORT`."""
        return self.url.removeprefix("http://")


@dataclass(frozen=True)
class ServerName:
    """A name in DNS, each address of which is a tritonserver behind the gateway.

    Args:
        host: the name.
        port: of HTTP.
        metrics_port: of metrics.
    """

    host: str
    port: int
    metrics_port: int = 8002


@dataclass(frozen=True)
class JwtSettings:
    """The rules by which JSON Web Tokens of an identity provider are valid, and what follows from them.

    Args:
        jwks_url: of the provider's public keys: `https://...`, or the path of a file.
        issuer: what `iss` must be.
        audience: what `aud` must be or contain.
        algorithms: of signatures that are taken.
        tenant_claim: names the tenant.
        models_claim: lists the models that the bearer may use; a token without it may use all.
        plan_claim: names the plan of the bearer; a token without it has the plan `default`.
        plans_file: of the plans, with their limits, models and priorities; None for no limits.
    """

    jwks_url: str
    issuer: str
    audience: str
    algorithms: tuple[str, ...] = ("RS256", "ES256", "EdDSA")
    tenant_claim: str = "sub"
    models_claim: str = "models"
    plan_claim: str = "plan"
    plans_file: Path | None = None


@dataclass(frozen=True)
class TlsSettings:
    """The files of a certificate, which are read again when they change."""

    certificate: Path
    key: Path


@dataclass(frozen=True)
class HttpLimits:
    """The limits that hold before a request is understood.

    Args:
        max_body_bytes: of a request.
        max_header_bytes: of a request's path and headers together.
        receive_timeout_s: for the headers of a request, and again for its body, to arrive.
        send_timeout_s: for a client that does not read to begin again.
        idle_timeout_s: after which a connection without a request is closed.
        max_connections: at once, on each port.
    """

    max_body_bytes: int = 8 << 20
    max_header_bytes: int = 32 << 10
    receive_timeout_s: float = 30.0
    send_timeout_s: float = 120.0
    idle_timeout_s: float = 75.0
    max_connections: int = 8192


@dataclass(frozen=True)
class GatewaySettings:
    """Everything that one gateway is told at its start.

    Args:
        servers: the tritonservers behind it.
        server_dns: a name whose addresses are further ones; None for none.
        routes_file: says which servers are the stable side and which the canary; None for no canary.
        host: address of the public port.
        port: the public one.
        private_host: address of the private port.
        private_port: for metrics, probes and drain; 0 for none.
        agent_port: for the agent check of HAProxy, on the private address; 0 for none.
        keys_file: of API keys; None for none.
        jwt: None if tokens are not taken.
        limits_store: URL of a Redis or Valkey in which gateways share limits; None to count in this process.
        limits_fail_open: while the store is gone, go on with this gateway's share of each limit; otherwise refuse.
        num_replicas: gateways that share limits, for that share.
        tls: None to speak plain HTTP on the public port.
        drain_delay_s: between the request to stop and the first refusal.
        drain_timeout_s: for running answers after that.
        keep_alive_s: of silence in a stream until a comment is sent; 0 for never.
        request_timeout_s: for a request whose client names no timeout.
        max_n: answers to one prompt that a client may ask for.
        allow_unknown_fields: ignore what is not known in a request, and list it in a header of the answer.
        relax_tools: with tool_choice `auto`, hold calls to the tools' schemas only where a tool says `strict`.
        share_prefix_cache: let prompts of one tenant use what those of another have left in the cache.
        otlp_url: of the collector of traces; None for no traces.
        log_file: of the request log; None for standard output.
        is_quiet: print nothing but errors, and no request log unless it has a file.
        http: limits of the server itself.
    """

    servers: tuple[ServerAddress, ...] = (ServerAddress("http://127.0.0.1:8000", "http://127.0.0.1:8002"),)
    server_dns: ServerName | None = None
    routes_file: Path | None = None
    host: str = "127.0.0.1"
    port: int = 8080
    private_host: str = "127.0.0.1"
    private_port: int = 8081
    agent_port: int = 0
    keys_file: Path | None = None
    jwt: JwtSettings | None = None
    limits_store: str | None = None
    limits_fail_open: bool = True
    num_replicas: int = 1
    tls: TlsSettings | None = None
    drain_delay_s: float = 15.0
    drain_timeout_s: float = 120.0
    keep_alive_s: float = 15.0
    request_timeout_s: float = 600.0
    max_n: int = 128
    allow_unknown_fields: bool = False
    relax_tools: bool = False
    share_prefix_cache: bool = False
    otlp_url: str | None = None
    log_file: Path | None = None
    is_quiet: bool = False
    http: HttpLimits = field(default_factory=HttpLimits)

    def __post_init__(self) -> None:
        """Refuse settings that contradict each other.

        Raises:
            ConfigError: names the option, and says what to do.
        """
        if not self.asks_for_keys and not is_loopback(self.host):
            raise ConfigError(
                f"--host {self.host}: without keys anybody who can reach this address could use the models. Make a key "
                "with `trident keys create --keys keys.json --tenant NAME` and give `--keys keys.json`, take tokens "
                "with --jwks-url, or stay on 127.0.0.1"
            )
        if self.private_port == self.port and self.port:
            raise ConfigError(f"--private-port {self.private_port}: is the public port")
        if self.agent_port and self.agent_port in (self.port, self.private_port):
            raise ConfigError(f"--agent-port {self.agent_port}: is another port of the gateway")
        for option, value, least in (
            ("--drain-delay", self.drain_delay_s, 0.0),
            ("--drain-timeout", self.drain_timeout_s, 0.0),
            ("--keep-alive", self.keep_alive_s, 0.0),
            ("--replicas", self.num_replicas, 1),
            ("--max-n", self.max_n, 1),
            ("--max-body", self.http.max_body_bytes, 1024),
        ):
            if value < least:
                raise ConfigError(f"{option} {value:g}: is below {least:g}")
        if self.request_timeout_s <= 0:
            raise ConfigError(f"--request-timeout {self.request_timeout_s:g}: is not above 0")
        if self.max_n > 128:
            raise ConfigError(f"--max-n {self.max_n}: is above 128")

    @property
    def asks_for_keys(self) -> bool:
        """Whether clients must say who they are."""
        return self.keys_file is not None or self.jwt is not None
