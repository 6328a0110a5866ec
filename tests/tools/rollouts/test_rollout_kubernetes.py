"""Weights in an HTTPRoute, on a double of the API server."""

from __future__ import annotations

import math
import ssl
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.fakes.kube_api import FakeKubeApi
from trident_ensemble.contract.errors import ConfigError, ServerError
from trident_tools.rollouts import kubernetes
from trident_tools.rollouts.http_route import HttpRoute
from trident_tools.rollouts.kubernetes import KubeAddress, KubeApi, kube_address
from trident_tools.rollouts.routes_file import ForeignChangeError


@pytest.fixture
def api() -> Iterator[tuple[FakeKubeApi, HttpRoute]]:
    fake = FakeKubeApi()
    with fake.listening() as url:
        yield fake, HttpRoute(KubeApi(kube_address(url)), "trident/trident", "trident", "trident-canary")


def _set(route: dict[str, Any], stable: int, canary: int) -> None:
    backends = route["spec"]["rules"][0]["backendRefs"]
    backends[0]["weight"], backends[1]["weight"] = stable, canary


@pytest.mark.parametrize(("weight", "weights"), [(1, (99, 1)), (100, (0, 100)), (0.5, (9950, 50))])
def test_a_weight_is_patched_into_both_backends(
    api: tuple[FakeKubeApi, HttpRoute], weight: float, weights: tuple[int, int]
) -> None:
    fake, route = api
    route.set_weight(weight, 0.0)
    assert tuple(fake.weights.values()) == weights
    assert route.weight() == pytest.approx(weight)
    # All else of the rule is as it was.
    assert fake.route["spec"]["rules"][0]["matches"] == [{"path": {"type": "PathPrefix", "value": "/"}}]


def test_a_weight_is_shown_once_a_gateway_has_taken_it(api: tuple[FakeKubeApi, HttpRoute]) -> None:
    fake, route = api
    assert math.isnan(route.shown_weight())
    fake.takes = False
    route.set_weight(10, 0.0)
    assert math.isnan(route.shown_weight())
    fake.takes = True
    fake.take()
    assert route.shown_weight() == pytest.approx(10)


def test_a_change_of_others_at_the_same_time_is_kept(api: tuple[FakeKubeApi, HttpRoute]) -> None:
    fake, route = api

    def interfere() -> None:
        fake.on_patch = lambda: None
        fake.change(lambda one: one["spec"]["rules"][0].update(timeouts={"request": "600s"}))

    fake.on_patch = interfere
    route.set_weight(10, 0.0)
    assert fake.num_patches == 2
    assert fake.route["spec"]["rules"][0]["timeouts"] == {"request": "600s"}
    assert fake.weights == {"trident": 90, "trident-canary": 10}


def test_a_weight_of_others_is_not_raised_but_taken_back(api: tuple[FakeKubeApi, HttpRoute]) -> None:
    fake, route = api
    route.set_weight(10, 0.0)
    fake.on_patch = lambda: fake.change(lambda one: _set(one, 70, 30)) if fake.weights["trident"] == 90 else None
    with pytest.raises(ForeignChangeError, match="30 %"):
        route.set_weight(50, 10.0)
    assert fake.weights == {"trident": 70, "trident-canary": 30}
    route.set_weight(0, 10.0)
    assert fake.weights == {"trident": 100, "trident-canary": 0}


def test_a_route_that_changes_all_the_time_is_given_up(api: tuple[FakeKubeApi, HttpRoute]) -> None:
    fake, route = api
    fake.on_patch = lambda: fake.change(lambda one: one["metadata"].update(labels={"n": str(fake.num_patches)}))
    with pytest.raises(ServerError, match="changes all the time"):
        route.set_weight(10, 0.0)


def test_a_route_without_both_backends_is_refused(api: tuple[FakeKubeApi, HttpRoute]) -> None:
    fake, route = api
    fake.change(lambda one: one["spec"]["rules"][0]["backendRefs"].pop())
    with pytest.raises(ServerError, match="trident-canary"):
        route.weight()


def test_a_refusal_says_why(api: tuple[FakeKubeApi, HttpRoute]) -> None:
    fake, route = api
    fake.refusal = 403
    with pytest.raises(ServerError, match="403 it is forbidden"):
        route.set_weight(10, 0.0)


def test_a_pod_shows_its_service_account_and_trusts_its_cluster_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    account, other = tmp_path / "account", tmp_path / "other"
    for folder in (account, other):
        folder.mkdir()
        _write_certificate(folder)
        (folder / "token").write_text("first\n", encoding="ascii")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(account / "ca.crt", account / "key")
    fake = FakeKubeApi()
    with fake.listening(context) as url:
        monkeypatch.setattr(kubernetes, "_ACCOUNT", account)
        monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
        monkeypatch.setenv("KUBERNETES_SERVICE_PORT", url.rpartition(":")[2])
        address = kube_address(None)
        assert address.url == url
        route = HttpRoute(KubeApi(address), "trident/trident", "trident", "trident-canary")
        route.set_weight(10, 0.0)
        # Tokens are replaced while a pod runs.
        (account / "token").write_text("second\n", encoding="ascii")
        assert route.weight() == pytest.approx(10)
        assert fake.authorizations == {"Bearer first", "Bearer second"}
        stranger = HttpRoute(KubeApi(KubeAddress(url, other)), "trident/trident", "trident", "trident-canary")
        with pytest.raises(ServerError, match="does not answer"):
            stranger.weight()
    assert fake.weights == {"trident": 90, "trident-canary": 10}


def _write_certificate(folder: Path) -> None:
    """Write a certificate of this machine's own address, which is its own authority, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, folder.name)])
    now = datetime.now(timezone.utc)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now)
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(IPv4Address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    (folder / "ca.crt").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    (folder / "key").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )


@pytest.mark.parametrize("name", ["trident", "/trident", "trident/", "a/b/c"])
def test_a_name_without_a_namespace_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="NAMESPACE/NAME"):
        HttpRoute(KubeApi(KubeAddress("http://127.0.0.1:1")), name, "a", "b")


def test_outside_of_a_cluster_the_api_must_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(ConfigError, match="kubectl proxy"):
        kube_address(None)
    with pytest.raises(ConfigError, match="--kube-api"):
        kube_address("https://127.0.0.1:6443")
