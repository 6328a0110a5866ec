"""The public keys of an identity provider.

Owns when they are fetched: in a thread, never more often than it is told to, however many tokens name keys that are not
there. Keys that were fetched once stay in force while the provider cannot be reached. Never sees a token.
"""

from __future__ import annotations

import asyncio
import logging
import time
import urllib.request
from collections.abc import Callable, Collection
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path
from typing import Any

import msgspec
from jwt import PyJWK
from jwt.exceptions import PyJWTError

from trident_ensemble.contract.errors import ConfigError

_log = logging.getLogger(__name__)

_MAX_BYTES = 1 << 20
_FETCH_TIMEOUT_S = 5.0
_LOCAL = ("http://127.0.0.1:", "http://localhost:", "http://[::1]:")


class KeySet:
    """The keys of a provider, by their names.

    Args:
        source: URL or path of the JSON Web Key Set. Without TLS a URL must lead to this machine.
        algorithms: that are taken; a key of another one is no key.
        refresh_s: between two fetches while nothing is missed.
        min_refresh_s: between two fetches because of an unknown name.
        clock_s: tells seconds from an arbitrary beginning.

    Raises:
        ConfigError: a URL without TLS that leads elsewhere.
    """

    def __init__(
        self,
        source: str,
        algorithms: Collection[str],
        *,
        refresh_s: float = 300.0,
        min_refresh_s: float = 30.0,
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        if source.startswith("http://") and not source.startswith(_LOCAL):
            raise ConfigError("the provider's keys must be fetched over https: whoever can change them can be anybody")
        self._source = source
        self._algorithms = frozenset(algorithms)
        # A file costs nothing to look at, and what was taken out of it must not be believed for long.
        self._refresh_s = refresh_s if source.startswith(("http://", "https://")) else 2.0
        self._min_refresh_s = min_refresh_s
        self._clock_s = clock_s
        self._keys: dict[str, PyJWK] | None = None
        self._last_fetch_s = float("-inf")
        self._fetching: asyncio.Task[None] | None = None
        self._watch: asyncio.Task[None] | None = None
        self.num_fetches = 0
        self.num_failures = 0

    @property
    def is_known(self) -> bool:
        """Whether the keys could ever be fetched."""
        return self._keys is not None

    async def find(self, name: str) -> PyJWK | None:
        """Return the key of a name; None if the provider has none. An unknown one may wait for a fetch."""
        if (found := (self._keys or {}).get(name)) is not None:
            return found
        if self._fetching is None and self._clock_s() - self._last_fetch_s < self._min_refresh_s:
            return None
        await self.refresh()
        return (self._keys or {}).get(name)

    async def refresh(self) -> None:
        """Fetch the keys, or wait for who is doing so."""
        if self._fetching is None:
            self._last_fetch_s = self._clock_s()
            self._fetching = asyncio.create_task(self._fetch())
        # A client that leaves takes nobody else's fetch with it.
        await asyncio.shield(self._fetching)

    async def start(self) -> None:
        """Begin to fetch the keys; returns at once."""
        self._watch = asyncio.create_task(self._refresh_again_and_again())

    async def close(self) -> None:
        """Stop fetching."""
        for task in (self._watch, self._fetching):
            if task is not None:
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task

    async def _refresh_again_and_again(self) -> None:
        while True:
            await self.refresh()
            await asyncio.sleep(self._refresh_s)

    async def _fetch(self) -> None:
        self.num_fetches += 1
        try:
            content = await asyncio.to_thread(_read, self._source)
            self._keys = _usable(msgspec.json.decode(content, type=_Described), self._algorithms)
        # Whatever a provider sends in the place of keys, the keys of before stay in force.
        except (OSError, HTTPException, ValueError, msgspec.MsgspecError, RecursionError) as error:
            self.num_failures += 1
            _log.warning("The identity provider's keys cannot be fetched: %s", type(error).__name__)
        finally:
            self._fetching = None


class _Described(msgspec.Struct, frozen=True):
    keys: list[dict[str, Any]]


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Follows nobody: keys come from where the configuration says, or from nowhere."""

    def redirect_request(self, *_: Any) -> None:
        """Refuse."""


def _read(source: str) -> bytes:
    if not source.startswith(("http://", "https://")):
        return Path(source).read_bytes()
    opener = urllib.request.build_opener(_NoRedirect)
    with opener.open(source, timeout=_FETCH_TIMEOUT_S) as answer:
        content: bytes = answer.read(_MAX_BYTES + 1)
    if len(content) > _MAX_BYTES:
        raise ValueError
    return content


def _usable(key_set: _Described, algorithms: Collection[str]) -> dict[str, PyJWK]:
    """Return the keys that have a name, are meant for signatures, and belong to one of the algorithms."""
    usable = {}
    for described in key_set.keys:
        name = described.get("kid") if described.get("use", "sig") == "sig" else None
        with suppress(PyJWTError, ValueError, TypeError):
            key = PyJWK(described)
            if isinstance(name, str) and key.algorithm_name in algorithms:
                usable[name] = key
    return usable
