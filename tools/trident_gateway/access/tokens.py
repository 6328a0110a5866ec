"""JSON Web Tokens of an identity provider.

Owns what makes a token valid (its signature by one of the provider's keys, `iss`, `aud`, `exp`, and `nbf` where it has
one) and whom its claims name. Algorithms are those of public keys alone, and the one that the key is for. Never asks
the provider about a token, never keeps one.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated, Any

import jwt
import msgspec

from trident_ensemble.contract.errors import ConfigError
from trident_gateway.access.key_set import KeySet
from trident_gateway.callers import Caller, CallerLimits
from trident_gateway.errors import UnavailableError
from trident_gateway.settings import JwtSettings
from trident_gateway.watched_file import WatchedFile

#: Signatures that only the provider can make; a shared secret is none of them.
ALGORITHMS = ("RS256", "ES256", "EdDSA")

_MAX_TOKEN_CHARS = 16 << 10

#: The engine takes no longer names of tenants.
_MAX_TENANT_BYTES = 256

#: Seconds by which the provider's clock may differ from this one.
_LEEWAY_S = 30

_Name = Annotated[str, msgspec.Meta(min_length=1, max_length=256)]


class Plan(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The limits, models and priority of the bearers of tokens of one plan.

    Args:
        models: None for all.
        limits: that all bearers of one tenant share.
        priority: level of their requests, and the most urgent one that they may ask for.
    """

    models: tuple[_Name, ...] | None = None
    limits: CallerLimits = CallerLimits()
    priority: Annotated[int, msgspec.Meta(ge=-100, le=100)] = 0


class _Plans(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    plans: dict[_Name, Plan]


def read_plans(path: Path) -> dict[str, Plan]:
    """Return the plans of a file, by name.

    Raises:
        ConfigError: it cannot be read or understood.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=_Plans).plans
    except OSError as error:
        raise ConfigError(f"the file of plans cannot be read: {error.strerror}") from None
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise ConfigError(f"the file of plans cannot be understood: {error}") from None


class TokenVerifier:
    """Tells whether a token is valid, and whom it names.

    Args:
        settings: what makes a token valid.
        keys: of the provider; None for those that the settings name.

    Raises:
        ConfigError: an algorithm that is not allowed, or plans that cannot be understood.
    """

    def __init__(self, settings: JwtSettings, keys: KeySet | None = None) -> None:
        for algorithm in settings.algorithms:
            if algorithm not in ALGORITHMS:
                raise ConfigError(f"tokens signed by {algorithm} are never taken, only by {', '.join(ALGORITHMS)}")
        self._settings = settings
        self._keys = keys or KeySet(settings.jwks_url, settings.algorithms)
        self._jwt = jwt.PyJWT(options={"enforce_minimum_key_length": True})
        self._plans: WatchedFile[dict[str, Plan]] | None = None
        if settings.plans_file is not None:
            self._plans = WatchedFile(settings.plans_file, "The file of plans", read_plans)

    @property
    def keys(self) -> KeySet:
        """The provider's keys."""
        return self._keys

    @property
    def plans(self) -> WatchedFile[dict[str, Plan]] | None:
        """The file of plans; None if there is none."""
        return self._plans

    async def start(self) -> None:
        """Begin to fetch the provider's keys, and to look for changes of the plans; returns at once."""
        await self._keys.start()
        if self._plans is not None:
            await self._plans.start()

    async def close(self) -> None:
        """Stop fetching and looking."""
        await self._keys.close()
        if self._plans is not None:
            await self._plans.close()

    async def verify(self, token: str) -> Caller | None:
        """Return the caller that a token names; None if it is not valid.

        Raises:
            UnavailableError: the provider's keys could never be fetched, so nobody knows whether it is.
        """
        if len(token) > _MAX_TOKEN_CHARS:
            return None
        try:
            name = jwt.get_unverified_header(token).get("kid")
            if not isinstance(name, str):
                return None
            key = await self._keys.find(name)
            if key is None and not self._keys.is_known:
                raise UnavailableError(
                    "Tokens cannot be checked at the moment. Try again later.", code="identity_provider_unavailable"
                )
            return None if key is None else self._caller(self._claims(token, key))
        # A tenant's name may hold half a surrogate pair, which cannot be encoded.
        except (jwt.PyJWTError, UnicodeEncodeError):
            return None

    def _claims(self, token: str, key: jwt.PyJWK) -> dict[str, Any]:
        return self._jwt.decode(
            token,
            key,
            algorithms=list(self._settings.algorithms),
            audience=self._settings.audience,
            issuer=self._settings.issuer,
            leeway=_LEEWAY_S,
            options={"require": ["iss", "aud", "exp"]},
        )

    def _caller(self, claims: dict[str, Any]) -> Caller | None:
        tenant = claims.get(self._settings.tenant_claim)
        plan_name = claims.get(self._settings.plan_claim, "default")
        if not isinstance(tenant, str) or not isinstance(plan_name, str):
            return None
        if not 0 < len(tenant.encode()) <= _MAX_TENANT_BYTES:
            return None
        plan = Plan() if self._plans is None else self._plans.value.get(plan_name)
        if plan is None:
            return None
        models = None if plan.models is None else frozenset(plan.models)
        if (claimed := claims.get(self._settings.models_claim)) is not None:
            listed = _listed(claimed)
            models = listed if models is None else models & listed
        # Whoever a bearer is stays with the provider: logs get a pseudonym.
        bearer = f"{claims['iss']}\n{claims.get('sub', tenant)}"
        return Caller(
            key_id=f"jwt-{hashlib.sha256(bearer.encode(errors='replace')).hexdigest()[:12]}",
            account=f"jwt/{plan_name}/{tenant}",
            tenant=tenant,
            models=models,
            limits=plan.limits,
            priority=plan.priority,
        )


def _listed(claimed: Any) -> frozenset[str]:
    """Return the names in a claim: a list of them, or one text in which spaces divide them."""
    if isinstance(claimed, str):
        return frozenset(claimed.split())
    if isinstance(claimed, list):
        return frozenset(name for name in claimed if isinstance(name, str))
    return frozenset()
