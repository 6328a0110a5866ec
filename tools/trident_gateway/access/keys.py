"""The keys of a gateway.

Owns which keys are valid at a moment. Every comparison takes the same time, and a key that is unknown costs the same
work as one that is known. Never keeps a secret, never says why a key is not valid.
"""

from __future__ import annotations

import hmac
import time
from collections.abc import Callable
from pathlib import Path

from trident_gateway.access.key_file import KeyRecord, read_keys, sha256, split_key
from trident_gateway.callers import Caller
from trident_gateway.watched_file import WatchedFile

#: No secret has this hash, as far as anybody knows.
_NO_HASH = "0" * 64


class KeyStore:
    """The keys of a file, which is read again within seconds of a change.

    Args:
        path: of the file.
        clock_s: tells the time, in seconds since 1970.

    Raises:
        ConfigError: it cannot be read or understood.
    """

    def __init__(self, path: Path, *, clock_s: Callable[[], float] = time.time) -> None:
        self._file = WatchedFile(path, "The file of keys", _read)
        self._clock_s = clock_s

    @property
    def file(self) -> WatchedFile[dict[str, _Key]]:
        """The file behind it."""
        return self._file

    def find(self, key: str) -> Caller | None:
        """Return the caller whose key a client has sent; None if it is not valid."""
        # What has not the form of a key goes the same way: it costs one hash, and finds nothing.
        key_id, secret = split_key(key) or ("", key[:64])
        known = self._file.value.get(key_id)
        expected = _NO_HASH if known is None else known.secret_sha256
        is_right = hmac.compare_digest(sha256(secret), expected)
        if known is None or not is_right or self._clock_s() >= known.ends_s:
            return None
        return known.caller


class _Key:
    """A key, ready to be compared."""

    def __init__(self, record: KeyRecord) -> None:
        self.secret_sha256 = record.secret_sha256
        ends = [moment.timestamp() for moment in (record.expires, record.revoked) if moment is not None]
        self.ends_s = min(ends, default=float("inf"))
        self.caller = Caller(
            key_id=record.id,
            account=record.id,
            tenant=record.tenant,
            models=None if record.models is None else frozenset(record.models),
            limits=record.limits,
            priority=record.priority,
        )


def _read(path: Path) -> dict[str, _Key]:
    return {record.id: _Key(record) for record in read_keys(path)}
