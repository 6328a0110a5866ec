"""The authenticator, which finds the caller that the header of a request names.

Owns the order in which keys and tokens are tried, and that every refusal is the same. Never reads a file while a
request waits; a provider is asked only for a key that it has not shown before.
"""

from __future__ import annotations

from trident_gateway.access.keys import KeyStore
from trident_gateway.access.tokens import TokenVerifier
from trident_gateway.callers import ANYBODY, Caller
from trident_gateway.errors import AuthenticationError
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
        keys = None if settings.keys_file is None else KeyStore(settings.keys_file)
        tokens = None if settings.jwt is None else TokenVerifier(settings.jwt)
        return cls(keys, tokens)

    @property
    def is_open(self) -> bool:
        """Whether everybody is let in."""
        return self._keys is None and self._tokens is None

    @property
    def num_stale_files(self) -> int:
        """Files whose content of now cannot be understood, so that an older one is in force."""
        plans = None if self._tokens is None else self._tokens.plans
        files = (None if self._keys is None else self._keys.file, plans)
        return sum(file is not None and not file.is_current for file in files)

    @property
    def num_failed_fetches(self) -> int:
        """How often the identity provider's keys could not be fetched."""
        return 0 if self._tokens is None else self._tokens.keys.num_failures

    async def start(self) -> None:
        """Begin to look for changes of the files and of the provider's keys; returns at once."""
        if self._keys is not None:
            await self._keys.file.start()
        if self._tokens is not None:
            await self._tokens.start()

    async def close(self) -> None:
        """Stop looking for changes."""
        if self._keys is not None:
            await self._keys.file.close()
        if self._tokens is not None:
            await self._tokens.close()

    async def authenticate(self, authorization: str | None) -> Caller:
        """Return the caller.

        Args:
            authorization: the value of the header of that name; None where it is absent.

        Raises:
            AuthenticationError: it names no caller; the same error whatever is wrong.
            UnavailableError: it may name one, but an identity provider would have to be asked, and does not answer.
        """
        if self.is_open:
            return ANYBODY
        scheme, _, credential = (authorization or "").partition(" ")
        credential = credential.strip() if scheme.lower() == "bearer" else ""
        caller = None if self._keys is None else self._keys.find(credential)
        if caller is None and self._tokens is not None:
            caller = await self._tokens.verify(credential)
        if caller is None:
            raise AuthenticationError
        return caller
