"""From the header of a request to the caller it comes from.

Owns the order in which keys and tokens are tried, and that every refusal is the same. Never reads a file or asks a
provider while a request waits, but for a token whose key has just been exchanged.
"""

from __future__ import annotations

from trident_gateway.access.keys import KeyStore
from trident_gateway.access.tokens import TokenVerifier
from trident_gateway.callers import Caller
from trident_gateway.settings import GatewaySettings


class Authenticator:
    """Tells who a request comes from.

    Args:
        keys: None if there are none.
        tokens: None if none are taken. Where there are neither keys nor tokens, everybody is let in.
    """

    def __init__(self, keys: KeyStore | None = None, tokens: TokenVerifier | None = None) -> None:
        self._keys = keys
        self._tokens = tokens

    @classmethod
    def of(cls, settings: GatewaySettings) -> Authenticator:
        """Return the one that a gateway's settings ask for.

        Raises:
            ConfigError: the file of keys or of plans cannot be read or understood.
        """
        raise NotImplementedError

    async def start(self) -> None:
        """Begin to look for changes of the files and of the provider's keys; returns at once."""
        raise NotImplementedError

    async def close(self) -> None:
        """Stop looking for changes."""
        raise NotImplementedError

    async def authenticate(self, authorization: str | None) -> Caller:
        """Return the caller.

        Args:
            authorization: the value of the header of that name; None where it is absent.

        Raises:
            AuthenticationError: it names no caller; the same error whatever is wrong.
        """
        raise NotImplementedError
