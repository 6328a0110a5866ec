"""Keys: made, found, expired, revoked, and read again when their file changes."""

from __future__ import annotations

import asyncio
import errno
import hmac
import json
import logging
import os
import re
import stat
import subprocess
import sys
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from trident_ensemble.contract.errors import ConfigError
from trident_gateway.access.key_file import KeyRecord, change_keys, new_key, read_keys
from trident_gateway.access.keys import KeyStore
from trident_gateway.callers import CallerLimits

_NOW = datetime(2027, 1, 1, tzinfo=timezone.utc)


def _add(path: Path, **options: Any) -> tuple[str, str]:
    """Add a key to a file; return it and its id."""
    key, record = new_key(options.pop("tenant", "acme"), _NOW, **options)
    change_keys(path, lambda keys: (*keys, record))
    return key, record.id


def _now_s() -> float:
    return _NOW.timestamp()


def test_a_key_names_its_caller(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    limits = CallerLimits(requests_per_minute=3, tokens_per_month=10**12)
    key, key_id = _add(path, tenant="acme", models=("small", "large"), limits=limits, priority=-5)
    caller = KeyStore(path, clock_s=_now_s).find(key)
    assert caller is not None
    assert (caller.key_id, caller.account, caller.tenant, caller.limits) == (key_id, key_id, "acme", limits)
    assert caller.may_use("other", "small")
    assert not caller.may_use("medium")
    assert [caller.priority_for(asked) for asked in (None, -100, 7)] == [-5, -5, 7]


def test_a_key_has_256_random_bits_and_the_file_none_of_them(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    keys = {_add(path)[0] for _ in range(20)}
    assert len(keys) == 20
    assert all(re.fullmatch(r"sk-trident-[a-z0-9]{12}-[A-Za-z0-9_-]{43}", key) for key in keys)
    assert not any(key.split("-", 3)[3] in path.read_text() for key in keys)
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    "wrong", ["", "sk-trident-", "sk-trident-aaaaaaaaaaaa-" + 43 * "A", "sk-other", "é" * 200, "\ud800"]
)
def test_what_is_no_key_finds_nothing(tmp_path: Path, wrong: str) -> None:
    _add(tmp_path / "keys.json")
    assert KeyStore(tmp_path / "keys.json", clock_s=_now_s).find(wrong) is None


def test_any_other_secret_of_a_known_id_finds_nothing(tmp_path: Path) -> None:
    key, _ = _add(tmp_path / "keys.json")
    store = KeyStore(tmp_path / "keys.json", clock_s=_now_s)
    swapped = "A" if key[-1] != "A" else "B"
    assert store.find(key[:-1] + swapped) is None
    assert store.find(key + "A") is None
    assert store.find(key) is not None


def test_a_key_ends_when_it_expires(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    key, _ = _add(path, expires=_NOW + timedelta(days=1))
    seconds = _NOW.timestamp() + 86_400
    assert KeyStore(path, clock_s=lambda: seconds - 1).find(key) is not None
    assert KeyStore(path, clock_s=lambda: seconds).find(key) is None


def test_an_unknown_id_costs_the_work_of_a_known_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known, _ = _add(tmp_path / "keys.json")
    store = KeyStore(tmp_path / "keys.json", clock_s=_now_s)
    compared: list[tuple[int, int]] = []

    def compare(left: str, right: str, compare_digest: Callable[[str, str], bool] = hmac.compare_digest) -> bool:
        compared.append((len(left), len(right)))
        return compare_digest(left, right)

    monkeypatch.setattr(hmac, "compare_digest", compare)
    for key in (known, known[:-1] + "!", "sk-trident-aaaaaaaaaaaa-" + 43 * "A", "anything"):
        store.find(key)
    assert compared == [(64, 64)] * 4


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    async def main() -> None:
        path = tmp_path / "keys.json"
        first, first_id = _add(path)
        store = KeyStore(path, clock_s=_now_s)
        second, _ = _add(path)
        assert store.find(second) is None
        await store.file.look()
        assert store.find(second) is not None

        def revoked(keys: tuple[KeyRecord, ...]) -> tuple[KeyRecord, ...]:
            return tuple(
                KeyRecord(key.id, key.secret_sha256, key.tenant, key.created, revoked=_NOW)
                if key.id == first_id
                else key
                for key in keys
            )

        change_keys(path, revoked)
        await store.file.look()
        assert store.find(first) is None
        assert store.find(second) is not None

    asyncio.run(main())


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b'{"keys": [{"id": "aaaaaaaaaaaa"}]}',
        b'{"keys": [], "extra": 1}',
        b"\xff\xfe",
        b"[" * 100_000,
        None,
    ],
)
def test_a_broken_file_leaves_the_keys_in_force(
    tmp_path: Path, content: bytes | None, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        path = tmp_path / "keys.json"
        key, _ = _add(path)
        good = path.read_bytes()
        store = KeyStore(path, clock_s=_now_s)
        if content is None:
            path.unlink()
        else:
            path.write_bytes(content)
        with caplog.at_level(logging.DEBUG):
            await store.file.look()
            await store.file.look()
        assert store.find(key) is not None
        assert (store.file.num_failures, store.file.is_current) == (1, False)
        assert [record.levelname for record in caplog.records if record.name.startswith("trident")] == ["WARNING"]
        assert str(tmp_path) not in caplog.text
        path.write_bytes(good)
        await store.file.look()
        assert store.file.is_current

    asyncio.run(main())


def test_a_mounted_secret_is_read_again_when_its_links_turn(tmp_path: Path) -> None:
    """Kubernetes mounts a Secret as links through a folder `..data`, which it replaces as a whole."""

    async def main() -> None:
        keys = []
        for version in ("..1", "..2"):
            (tmp_path / version).mkdir()
            keys.append(_add(tmp_path / version / "keys.json")[0])
        (tmp_path / "..data").symlink_to("..1")
        (tmp_path / "keys.json").symlink_to("..data/keys.json")
        store = KeyStore(tmp_path / "keys.json", clock_s=_now_s)
        (tmp_path / "turn").symlink_to("..2")
        (tmp_path / "turn").rename(tmp_path / "..data")
        await store.file.look()
        assert [store.find(key) is not None for key in keys] == [False, True]

    asyncio.run(main())


def test_the_gateway_looks_by_itself_within_five_seconds(tmp_path: Path) -> None:
    async def main() -> None:
        path = tmp_path / "keys.json"
        _add(path)
        store = KeyStore(path, clock_s=_now_s)
        assert store.file._interval_s < 5
        store.file._interval_s = 0.01
        await store.file.start()
        key, _ = _add(path)
        while store.find(key) is None:
            await asyncio.sleep(0.01)
        await store.file.close()

    asyncio.run(asyncio.wait_for(main(), 60))


def test_a_file_that_is_broken_at_the_start_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        KeyStore(tmp_path / "absent.json")
    (tmp_path / "keys.json").write_text(json.dumps({"keys": [{"id": "short"}]}))
    with pytest.raises(ConfigError, match=r"cannot be understood.*\$\.keys\[0\]\.id"):
        KeyStore(tmp_path / "keys.json")


def test_a_key_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    _add(path)
    change_keys(path, lambda keys: keys + keys)
    with pytest.raises(ConfigError, match="twice"):
        read_keys(path)


def _let_new_files_be_of_another(monkeypatch: pytest.MonkeyPatch) -> None:
    def fstat(descriptor: int, fstat: Callable[[int], os.stat_result] = os.fstat) -> os.stat_result:
        fields = list(fstat(descriptor))
        fields[stat.ST_UID] += 1
        return os.stat_result(fields)

    monkeypatch.setattr(os, "fstat", fstat)


def test_a_changed_file_is_read_by_whoever_could_read_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A gateway that runs as another user would go on with the keys of the old file, also with those taken back."""
    path = tmp_path / "keys.json"
    _add(path)
    assert path.stat().st_mode & 0o777 == 0o600
    path.chmod(0o640)
    given: list[tuple[int, int]] = []
    _let_new_files_be_of_another(monkeypatch)
    monkeypatch.setattr(os, "fchown", lambda _, user, group: given.append((user, group)))
    _add(path)
    assert path.stat().st_mode & 0o777 == 0o640
    before = path.stat()
    assert given == [(before.st_uid, before.st_gid)] * 2, "the lock's too: the owner makes keys as well"


def test_a_file_whose_owner_cannot_be_kept_stays_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "keys.json"
    _add(path)
    before = path.read_bytes()

    def refuse(_descriptor: int, _user: int, _group: int) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    _let_new_files_be_of_another(monkeypatch)
    monkeypatch.setattr(os, "fchown", refuse)
    with pytest.raises(ConfigError, match=r"belongs to user \d+ and group \d+.*run this as that user"):
        _add(path)
    assert path.read_bytes() == before
    assert {found.name for found in tmp_path.iterdir()} == {"keys.json", ".keys.json.lock"}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_file_of_another_user_stays_his(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    _add(path)
    os.chown(path, 65534, 65533)
    _add(path)
    assert (path.stat().st_uid, path.stat().st_gid) == (65534, 65533)
    assert len(read_keys(path)) == 2


@pytest.mark.slow
def test_commands_at_the_same_time_lose_no_key(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    program = (
        "import sys; from datetime import datetime, timezone; from pathlib import Path;"
        "from trident_gateway.access.key_file import change_keys, new_key\n"
        "for _ in range(15):\n"
        "    record = new_key('t', datetime.now(timezone.utc))[1]\n"
        "    change_keys(Path(sys.argv[1]), lambda keys: (*keys, record))\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    writers = [subprocess.Popen([sys.executable, "-c", program, str(path)], env=environment) for _ in range(3)]
    # A reader never sees half a file.
    while any(writer.poll() is None for writer in writers):
        if path.exists():
            read_keys(path)
    assert [writer.returncode for writer in writers] == [0, 0, 0]
    assert len(read_keys(path)) == 45
    assert {found.name for found in tmp_path.iterdir()} == {"keys.json", ".keys.json.lock"}
