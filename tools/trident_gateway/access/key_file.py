"""The file of keys: what stands in it, and how it is written.

Owns the format, and that two commands at the same time lose nothing. A secret is seen once, when a key is made; the
file has its SHA-256 alone, which is enough for 256 random bits. Never decides whether a key is valid now.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import secrets
import stat
import string
import tempfile
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Annotated

import msgspec

from trident_ensemble.contract.errors import ConfigError
from trident_gateway.callers import CallerLimits

_ID_LENGTH = 12
_SECRET_BYTES = 32
_KEY = re.compile(r"sk-trident-([a-z0-9]{12})-([A-Za-z0-9_-]{43})")

_NO_LIMITS = CallerLimits()

_Name = Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
#: Characters take four bytes at most, and the engine takes names of 256 bytes.
_Tenant = Annotated[str, msgspec.Meta(min_length=1, max_length=64)]


class KeyRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A key as the file has it.

    Args:
        id: names it wherever it is spoken of.
        secret_sha256: of the secret, in hexadecimal digits.
        tenant: whom its requests are counted to.
        created: when it was made.
        models: that it may use; None for all.
        limits: what it may use of them.
        priority: level of its requests, and the most urgent one that they may ask for; lower goes first.
        expires: when it ends to be valid; None for never.
        revoked: when it was taken back; None if it was not.
        note: for whoever reads the list.
    """

    id: Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9]{12}$")]
    secret_sha256: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}$")]
    tenant: _Tenant
    created: Annotated[datetime, msgspec.Meta(tz=True)]
    models: tuple[_Name, ...] | None = None
    limits: CallerLimits = _NO_LIMITS
    priority: Annotated[int, msgspec.Meta(ge=-100, le=100)] = 0
    expires: Annotated[datetime, msgspec.Meta(tz=True)] | None = None
    revoked: Annotated[datetime, msgspec.Meta(tz=True)] | None = None
    note: str = ""


class _Contents(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    keys: tuple[KeyRecord, ...]


def new_key(
    tenant: str,
    created: datetime,
    *,
    models: tuple[str, ...] | None = None,
    limits: CallerLimits = _NO_LIMITS,
    priority: int = 0,
    expires: datetime | None = None,
    note: str = "",
) -> tuple[str, KeyRecord]:
    """Return a new key and what the file says of it."""
    letters = string.ascii_lowercase + string.digits
    key_id = "".join(secrets.choice(letters) for _ in range(_ID_LENGTH))
    secret = secrets.token_urlsafe(_SECRET_BYTES)
    record = KeyRecord(
        id=key_id,
        secret_sha256=sha256(secret),
        tenant=tenant,
        created=created,
        models=models,
        limits=limits,
        priority=priority,
        expires=expires,
        note=note,
    )
    return f"sk-trident-{key_id}-{secret}", record


def split_key(key: str) -> tuple[str, str] | None:
    """Return the id and the secret of what a client sends; None if it has not the form of a key."""
    found = _KEY.fullmatch(key)
    return None if found is None else (found[1], found[2])


def sha256(secret: str) -> str:
    """Return the hash of a secret, in hexadecimal digits."""
    return hashlib.sha256(secret.encode(errors="replace")).hexdigest()


def parse_keys(content: bytes) -> tuple[KeyRecord, ...]:
    """Return the keys in a file's content.

    Raises:
        ConfigError: says where it cannot be understood, and quotes no value of it.
    """
    try:
        keys = msgspec.json.decode(content, type=_Contents).keys
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise ConfigError(f"the file of keys cannot be understood: {error}") from None
    seen: set[str] = set()
    for key in keys:
        if key.id in seen:
            raise ConfigError(f"the file of keys cannot be understood: the key {key.id} is there twice")
        seen.add(key.id)
    return keys


def read_keys(path: Path) -> tuple[KeyRecord, ...]:
    """Return the keys of a file.

    Raises:
        ConfigError: it cannot be read or understood.
    """
    try:
        return parse_keys(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"the file of keys cannot be read: {error.strerror}") from None


def change_keys(path: Path, change: Callable[[tuple[KeyRecord, ...]], tuple[KeyRecord, ...]]) -> None:
    """Put what `change` makes of the keys in the place of the file, which is made where it is absent.

    Readers see the old file or the new one, and whoever could read the old one can read the new one; one that is made
    can be read by its owner alone. Of several commands at the same time, each sees what the one before it has written.

    Raises:
        ConfigError: the file cannot be read, understood or written, or would get another owner or group.
    """
    path = path.resolve()
    try:
        # The lock is on a file of its own, because the file of keys is another one after each change.
        with path.with_name(f".{path.name}.lock").open("w") as lock:
            os.fchmod(lock.fileno(), 0o600)
            if path.exists():
                _keep_owner(lock.fileno(), path.stat())
            fcntl.flock(lock, fcntl.LOCK_EX)
            keys = change(read_keys(path) if path.exists() else ())
            content = msgspec.json.format(msgspec.json.encode(_Contents(keys)), indent=2) + b"\n"
            _replace(path, content)
    except OSError as error:
        raise ConfigError(f"the file of keys cannot be written: {error.strerror}") from None


def _replace(path: Path, content: bytes) -> None:
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    beside = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            if path.exists():  # the file that mkstemp makes has mode 0600
                before = path.stat()
                _keep_owner(descriptor, before)
                os.fchmod(descriptor, stat.S_IMODE(before.st_mode))
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def _keep_owner(descriptor: int, before: os.stat_result) -> None:
    """Give a file that is being made the owner and the group of the one that it stands beside.

    A gateway that runs as another user could not read the new file, and would go on with the keys of the old one.
    """
    made = os.fstat(descriptor)
    if (made.st_uid, made.st_gid) == (before.st_uid, before.st_gid):
        return
    try:
        os.fchown(descriptor, before.st_uid, before.st_gid)
    except OSError as error:
        raise ConfigError(
            f"the file of keys belongs to user {before.st_uid} and group {before.st_gid}, and would get another owner, "
            f"so that its readers lose it: run this as that user ({error.strerror})"
        ) from None
