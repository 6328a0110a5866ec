"""An identity provider's keys, and the tokens that it signs.

Owns what is right; tests change one thing of it. Never serves anything.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from trident_gateway.settings import JwtSettings

RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)
PRIVATE: dict[str, Any] = {
    "RS256": RSA,
    "ES256": ec.generate_private_key(ec.SECP256R1()),
    "EdDSA": ed25519.Ed25519PrivateKey.generate(),
}
ISSUER, AUDIENCE = "https://issuer.example", "trident"


def public_key(algorithm: str, private: Any, name: str) -> dict[str, Any]:
    """Return a public key as a provider lists it."""
    described = jwt.get_algorithm_by_name(algorithm).to_jwk(private.public_key(), as_dict=True)
    return {**described, "kid": name, "use": "sig", "alg": algorithm}


KEY_SET = {"keys": [public_key(algorithm, private, algorithm) for algorithm, private in PRIVATE.items()]}


def right_claims(**changes: Any) -> dict[str, Any]:
    """Return claims that are right but for the changes; None leaves one out."""
    now = int(time.time())
    claims = {"iss": ISSUER, "aud": AUDIENCE, "exp": now + 600, "nbf": now - 600, "sub": "user", **changes}
    return {name: value for name, value in claims.items() if value is not None}


def signed_token(algorithm: str = "RS256", headers: dict[str, Any] | None = None, **changes: Any) -> str:
    """Return a token of the provider whose claims are right but for the changes."""
    headers = {"kid": algorithm} if headers is None else headers
    return jwt.encode(right_claims(**changes), PRIVATE[algorithm], algorithm=algorithm, headers=headers)


def jwt_settings(key_file: Path | str, **changes: Any) -> JwtSettings:
    """Return the settings that take the provider's tokens."""
    return JwtSettings(jwks_url=str(key_file), issuer=ISSUER, audience=AUDIENCE, **changes)
