"""Tokens of an identity provider: what is taken, and every known way to forge one."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import threading
import time
from collections.abc import Coroutine, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.gateway.access.identity import (
    AUDIENCE,
    KEY_SET,
    PRIVATE,
    RSA,
    jwt_settings,
    public_key,
    right_claims,
    signed_token,
)
from trident_ensemble.contract.errors import ConfigError
from trident_gateway.access.key_set import KeySet
from trident_gateway.access.tokens import TokenVerifier
from trident_gateway.callers import Caller, CallerLimits
from trident_gateway.errors import UnavailableError
from trident_gateway.settings import JwtSettings


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    """Return the file of the provider's public keys."""
    path = tmp_path / "jwks.json"
    path.write_text(json.dumps(KEY_SET))
    return path


def _run(main: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(main, 60))


def _verified(settings: JwtSettings, token: str) -> Caller | None:
    async def main() -> Caller | None:
        verifier = TokenVerifier(settings)
        await verifier.keys.refresh()
        return await verifier.verify(token)

    found: Caller | None = _run(main())
    return found


@pytest.mark.parametrize("algorithm", ["RS256", "ES256", "EdDSA"])
def test_a_token_names_its_caller(key_file: Path, algorithm: str) -> None:
    token = signed_token(algorithm, sub="someone@acme.example", org="acme", models=["small", "large"])
    caller = _verified(jwt_settings(key_file, tenant_claim="org"), token)
    assert caller is not None
    assert (caller.tenant, caller.models) == ("acme", frozenset({"small", "large"}))
    assert "someone" not in caller.key_id


def test_a_plan_gives_limits_models_and_priority(key_file: Path, tmp_path: Path) -> None:
    plans = tmp_path / "plans.json"
    gold = {"limits": {"requests_per_minute": 9}, "models": ["small", "large"], "priority": -10}
    plans.write_text(json.dumps({"plans": {"gold": gold, "default": {"limits": {"concurrency": 1}}}}))
    settings = jwt_settings(key_file, plans_file=plans)
    caller = _verified(settings, signed_token(plan="gold", models="large other"))
    assert caller is not None
    assert (caller.limits, caller.priority) == (CallerLimits(requests_per_minute=9), -10)
    assert caller.models == frozenset({"large"})
    everybody = _verified(settings, signed_token())
    assert everybody is not None
    assert everybody.limits == CallerLimits(concurrency=1)
    assert everybody.account != caller.account
    assert _verified(settings, signed_token(plan="platinum")) is None


def _with_none(_: str) -> str:
    return jwt.encode(right_claims(), "", algorithm="none", headers={"kid": "RS256"})


def _signed_with_public_key(form: str) -> str:
    """Return a token that is signed with HMAC, its secret being the public key: CVE-2015-9235 and its kin."""
    public = RSA.public_key()
    secrets = {
        "pem": public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo),
        "der": public.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo),
        "jwk": json.dumps(KEY_SET["keys"][0]).encode(),
    }
    parts = [json.dumps(part).encode() for part in ({"alg": "HS256", "kid": "RS256", "typ": "JWT"}, right_claims())]
    signed = b".".join(base64.urlsafe_b64encode(part).rstrip(b"=") for part in parts)
    signature = base64.urlsafe_b64encode(hmac.new(secrets[form], signed, hashlib.sha256).digest()).rstrip(b"=")
    return (signed + b"." + signature).decode()


def _own_key(_: str) -> str:
    """Return a token that brings its own key along."""
    other = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    headers = {"kid": "RS256", "jwk": public_key("RS256", other, "RS256"), "jku": "https://evil.example/jwks.json"}
    return jwt.encode(right_claims(), other, algorithm="RS256", headers=headers)


def _tampered(_: str) -> str:
    header, _claims_part, signature = signed_token().split(".")
    claims = base64.urlsafe_b64encode(json.dumps(right_claims(sub="other")).encode()).rstrip(b"=").decode()
    return f"{header}.{claims}.{signature}"


@pytest.mark.parametrize(
    "forged",
    [
        _with_none("alg none"),
        _signed_with_public_key("pem"),
        _signed_with_public_key("der"),
        _signed_with_public_key("jwk"),
        _own_key(""),
        _tampered(""),
        signed_token(headers={"kid": "ES256"}),
        signed_token(headers={"kid": "unknown"}),
        signed_token(headers={}),
        jwt.encode(right_claims(), RSA, algorithm="RS512", headers={"kid": "RS256"}),
        signed_token(iss="https://other.example"),
        signed_token(iss=None),
        signed_token(aud="other"),
        signed_token(aud=["other", "another"]),
        signed_token(aud=None),
        signed_token(exp=int(time.time()) - 60),
        signed_token(exp=None),
        signed_token(exp="soon"),
        signed_token(nbf=int(time.time()) + 86_400),
        signed_token(sub=""),
        signed_token(sub="x" * 257),
        signed_token(sub=None),
        signed_token(sub="\ud800"),
        "",
        "a.b.c",
        "." * 20_000,
        base64.urlsafe_b64encode(b"[" * 9_000).decode() + ".e30.",
        base64.urlsafe_b64encode(b'{"alg":"RS256","kid":"RS256","x":' + b"9" * 5000 + b"}").decode() + ".e30.AA",
    ],
)
def test_a_forged_or_stale_token_is_refused(key_file: Path, forged: str) -> None:
    assert _verified(jwt_settings(key_file), forged) is None


def test_a_token_for_several_audiences_is_taken(key_file: Path) -> None:
    assert _verified(jwt_settings(key_file), signed_token(aud=["other", AUDIENCE])) is not None


def test_a_token_without_nbf_is_taken(key_file: Path) -> None:
    """Providers such as Okta and Google leave it out."""
    assert _verified(jwt_settings(key_file), signed_token(nbf=None)) is not None


def test_secrets_and_weak_keys_in_a_key_set_are_no_keys(tmp_path: Path) -> None:
    weak = rsa.generate_private_key(public_exponent=65537, key_size=1024)  # noqa: S505
    secret = {"kty": "oct", "kid": "secret", "k": base64.urlsafe_b64encode(b"s" * 32).decode()}
    encryption = {**public_key("RS256", RSA, "encryption"), "use": "enc"}
    path = tmp_path / "jwks.json"
    path.write_text(
        json.dumps({"keys": [secret, encryption, public_key("RS256", weak, "weak"), {"kty": "RSA", "kid": "half"}]})
    )
    tokens = [
        jwt.encode(right_claims(), b"s" * 32, algorithm="HS256", headers={"kid": "secret"}),
        signed_token(headers={"kid": "encryption"}),
        jwt.encode(right_claims(), weak, algorithm="RS256", headers={"kid": "weak"}),
    ]
    assert [_verified(jwt_settings(path), token) for token in tokens] == [None] * 3


@pytest.mark.parametrize("algorithm", ["HS256", "none", "RS512"])
def test_an_algorithm_beyond_the_list_is_refused_at_the_start(key_file: Path, algorithm: str) -> None:
    with pytest.raises(ConfigError, match=algorithm):
        TokenVerifier(jwt_settings(key_file, algorithms=(algorithm,)))


def test_keys_are_never_fetched_in_the_clear_from_elsewhere() -> None:
    with pytest.raises(ConfigError, match="https"):
        KeySet("http://issuer.example/jwks.json", ["RS256"])


@settings(deadline=None)
@given(
    st.text()
    | st.lists(st.binary(), min_size=3, max_size=3).map(
        lambda parts: b".".join(map(base64.urlsafe_b64encode, parts)).decode()
    )
)
def test_whatever_is_sent_is_refused_in_peace(token: str) -> None:
    verifier = TokenVerifier(jwt_settings("/nonexistent"))
    verifier.keys._keys = {}
    verifier.keys._last_fetch_s = time.monotonic()
    assert _run(verifier.verify(token)) is None


class _Provider(ThreadingHTTPServer):
    """An identity provider."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.key_set: dict[str, Any] = KEY_SET
        self.status = 200
        self.num_calls = 0
        self.gate = threading.Event()
        self.gate.set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/jwks.json"


class _Handler(BaseHTTPRequestHandler):
    server: _Provider

    def do_GET(self) -> None:
        self.server.num_calls += 1
        self.server.gate.wait(60)
        self.send_response(self.server.status)
        self.send_header("location", f"{self.server.url}/elsewhere")
        self.end_headers()
        self.wfile.write(json.dumps(self.server.key_set).encode())

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def provider() -> Iterator[_Provider]:
    """Yield a running provider."""
    with _Provider() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.gate.set()
        server.shutdown()
        thread.join()


def test_a_new_key_of_the_provider_is_taken_when_it_is_used(provider: _Provider) -> None:
    async def main() -> None:
        now = [0.0]
        keys = KeySet(provider.url, ["RS256", "EdDSA"], clock_s=lambda: now[0])
        verifier = TokenVerifier(jwt_settings(provider.url), keys)
        assert await verifier.verify(signed_token()) is not None
        provider.key_set = {"keys": [public_key("EdDSA", PRIVATE["EdDSA"], "new")]}
        token = signed_token("EdDSA", headers={"kid": "new"})
        assert await verifier.verify(token) is None
        now[0] += 30
        assert await verifier.verify(token) is not None
        assert await verifier.verify(signed_token()) is None
        await verifier.close()

    _run(main())


def test_a_flood_of_unknown_keys_asks_the_provider_once(provider: _Provider) -> None:
    async def main() -> None:
        now = [0.0]
        keys = KeySet(provider.url, ["RS256"], clock_s=lambda: now[0])
        verifier = TokenVerifier(jwt_settings(provider.url), keys)
        tokens = [signed_token(headers={"kid": f"unknown-{number}"}) for number in range(100)]
        found = await asyncio.gather(*(verifier.verify(token) for token in tokens))
        found += [await verifier.verify(token) for token in tokens]
        now[0] += 29.9
        found += [await verifier.verify(token) for token in tokens]
        assert found == [None] * 300
        assert provider.num_calls == 1
        await verifier.close()

    _run(main())


def test_the_loop_goes_on_while_the_provider_thinks(provider: _Provider) -> None:
    async def main() -> None:
        provider.gate.clear()
        verifier = TokenVerifier(jwt_settings(provider.url))
        waiting = asyncio.ensure_future(verifier.verify(signed_token()))
        while not provider.num_calls:
            await asyncio.sleep(0.001)
        leaving = asyncio.ensure_future(verifier.verify(signed_token()))
        await asyncio.sleep(0)
        leaving.cancel()
        await asyncio.sleep(0)
        assert not waiting.done()
        provider.gate.set()
        assert await waiting is not None
        await verifier.close()

    _run(main())


def test_keys_stay_in_force_while_the_provider_is_gone(provider: _Provider) -> None:
    async def main() -> None:
        verifier = TokenVerifier(jwt_settings(provider.url))
        assert await verifier.verify(signed_token()) is not None
        for status, key_set in ((500, KEY_SET), (302, KEY_SET), (200, {"keys": "none"})):
            provider.status, provider.key_set = status, key_set
            await verifier.keys.refresh()
            assert await verifier.verify(signed_token()) is not None
        assert verifier.keys.num_failures == 3
        # Nobody was sent elsewhere.
        assert provider.num_calls == 4
        await verifier.close()

    _run(main())


def test_nobody_is_called_unknown_before_the_provider_was_ever_reached(provider: _Provider) -> None:
    async def main() -> None:
        provider.status = 500
        verifier = TokenVerifier(jwt_settings(provider.url))
        with pytest.raises(UnavailableError):
            await verifier.verify(signed_token())
        await verifier.close()

    _run(main())
