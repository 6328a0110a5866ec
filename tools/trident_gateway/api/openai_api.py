"""All endpoints of the API, put together.

Owns the list of endpoints, and what all of them share. Never reads a body.
"""

from __future__ import annotations

from dataclasses import dataclass

from trident_gateway.access.authenticator import Authenticator
from trident_gateway.api.interface import Endpoint
from trident_gateway.limits.limiter import Limiter
from trident_gateway.settings import GatewaySettings
from trident_gateway.upstream.router import Router


@dataclass(frozen=True)
class ApiContext:
    """What every endpoint works with.

    Args:
        settings: of the gateway.
        router: knows the models and their servers.
        authenticator: knows the callers.
        limiter: bounds what they may use.
    """

    settings: GatewaySettings
    router: Router
    authenticator: Authenticator
    limiter: Limiter


def endpoints(context: ApiContext) -> tuple[Endpoint, ...]:
    """Return every endpoint of the API."""
    raise NotImplementedError
