"""The options of `trident gateway` and what becomes of them."""

from __future__ import annotations

import argparse
import ast
from pathlib import Path

import pytest

from trident_ensemble.contract.errors import ConfigError
from trident_gateway.settings import GatewaySettings, ServerAddress, ServerName
from trident_tools import gateway
from trident_tools.gateway_settings.reading import read_settings


def settings_of(*options: str) -> GatewaySettings:
    parser = argparse.ArgumentParser()
    gateway.add_arguments(parser)
    return read_settings(parser.parse_args(options))


def test_gateway_command_has_the_defaults_of_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_ENDPOINT", raising=False)
    monkeypatch.delenv("TRIDENT_LIMITS_STORE", raising=False)
    assert settings_of() == GatewaySettings()


def test_gateway_command_reads_the_store_of_limits_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIDENT_LIMITS_STORE", "redis://:secret@r")
    assert settings_of().limits_store == "redis://:secret@r"
    assert settings_of("--limits-store", "redis://other").limits_store == "redis://other"


def test_gateway_command_reads_every_option() -> None:
    made = settings_of(
        "--server", "http://a:8000", "--server", "http://[::1]:9000/", "--host", "192.0.2.1", "--port", "1",
        "--private-host", "::", "--private-port", "2", "--keys", "k", "--jwks-url", "https://i/jwks",
        "--jwt-issuer", "i", "--jwt-audience", "a", "--jwt-algorithms", "ES256, EdDSA",
        "--jwt-tenant-claim", "t", "--jwt-models-claim", "m",
        "--jwt-plan-claim", "p", "--plans", "q", "--limits-store", "redis://r", "--limits-fail", "closed",
        "--replicas", "3", "--tls-cert", "c", "--tls-key", "d", "--drain-delay", "4", "--drain-timeout", "5",
        "--keep-alive", "6", "--request-timeout", "7", "--max-n", "8", "--max-body", "9999", "--allow-unknown-fields",
        "--server-dns", "http://pods:9001", "--server-dns-metrics-port", "9002", "--routes", "r", "--agent-port", "3",
        "--relax-tools", "--share-prefix-cache", "--otlp", "http://o", "--log-file", "l", "--quiet",
    )  # fmt: skip
    assert made.servers == (
        ServerAddress("http://a:8000", "http://a:8002"), ServerAddress("http://[::1]:9000", "http://[::1]:8002")
    )  # fmt: skip
    assert made.server_dns == ServerName("pods", 9001, 9002)
    assert (made.routes_file, made.agent_port) == (Path("r"), 3)
    assert made.jwt is not None
    assert made.jwt.algorithms == ("ES256", "EdDSA")
    assert (made.jwt.tenant_claim, made.jwt.models_claim, made.jwt.plan_claim) == ("t", "m", "p")
    assert (made.jwt.plans_file, made.keys_file, made.log_file) == (Path("q"), Path("k"), Path("l"))
    defaults = GatewaySettings()
    same = {name for name in GatewaySettings.__dataclass_fields__ if getattr(made, name) == getattr(defaults, name)}
    assert not same, f"no option changes {same}"


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (("--host", "192.0.2.1"), "trident keys create"),
        (("--host", "::"), "trident keys create"),
        (("--host", "example"), "trident keys create"),
        (("--server", "grpc://a:1"), "--server grpc://a:1: is not a URL like"),
        (("--server", "http://a"), "give host and port alone"),
        (("--server", "http://a:1/v2"), "give host and port alone"),
        (("--server", "http://a:b"), "is not a URL"),
        (("--server", "http://a:1", "--server", "http://a:1"), "names one server twice"),
        (("--metrics-url", "http://a:1", "--metrics-url", "http://a:2"), "2 of them for 1 servers"),
        (("--server-dns", "http://pods"), "--server-dns http://pods: give host and port alone"),
        (("--server-dns-metrics-port", "70000", "--server-dns", "http://p:1"), "--server-dns-metrics-port 70000"),
        (("--port", "70000"), "--port 70000"),
        (("--agent-port", "8081"), "--agent-port 8081: is another port of the gateway"),
        (("--port", "9", "--private-port", "9"), "is the public port"),
        (("--tls-cert", "c"), "give both or none"),
        (("--jwt-issuer", "i"), "--jwks-url, --jwt-audience: missing"),
        (("--drain-delay", "-1"), "--drain-delay -1: is below 0"),
        (("--max-n", "129"), "--max-n 129"),
        (("--max-body", "5"), "--max-body 5"),
        (("--request-timeout", "0"), "--request-timeout 0"),
        (("--replicas", "0"), "--replicas 0"),
    ],
)
def test_gateway_command_refuses_what_makes_no_sense(options: tuple[str, ...], text: str) -> None:
    with pytest.raises(ConfigError) as refused:
        settings_of(*options)
    assert text in str(refused.value)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_gateway_command_needs_no_keys_on_this_machine_alone(host: str) -> None:
    assert not settings_of("--host", host).asks_for_keys


def test_gateway_command_takes_the_collector_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c:4318")
    assert settings_of().otlp_url == "http://c:4318"
    assert settings_of("--otlp", "http://d").otlp_url == "http://d"


@pytest.mark.parametrize("options", [(), ("--keys", "k", "--host", "192.0.2.1")])
@pytest.mark.parametrize("takes_messages", [True, False])
def test_gateway_command_announces_lines_that_work_as_they_stand(
    options: tuple[str, ...], takes_messages: bool
) -> None:
    text = gateway.announcement(settings_of(*options), {"demo": takes_messages, "other": True}, 8080)
    assert "demo, other" in text
    assert f"http://{'192.0.2.1' if options else 'localhost'}:8080/v1" in text
    assert ("Authorization: Bearer" in text) is bool(options)
    assert ("/chat/completions" in text) is takes_messages
    lines = text.split("or in Python:\n")[1].splitlines()
    assert len(lines) == 3
    ast.parse("\n".join(line.strip() for line in lines))
