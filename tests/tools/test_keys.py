"""`trident keys`: the keys it makes open the gateway, and it shows no secret."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from trident_gateway.access.key_file import read_keys
from trident_gateway.access.keys import KeyStore
from trident_gateway.callers import CallerLimits
from trident_tools.main import main


def _create(path: Path, capsys: pytest.CaptureFixture[str], *options: str) -> str:
    assert main(["keys", "create", "--keys", str(path), "--tenant", "acme", *options]) == 0
    said = capsys.readouterr()
    assert said.err == ""
    return said.out.removesuffix("\n")


def test_a_key_that_was_made_opens_the_gateway_until_it_is_revoked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "keys.json"
    key, other = _create(path, capsys), _create(path, capsys)
    caller = KeyStore(path).find(key)
    assert caller is not None
    assert (caller.tenant, caller.models, caller.limits.bounds_anything) == ("acme", None, False)
    assert main(["keys", "revoke", "--keys", str(path), caller.key_id]) == 0
    assert KeyStore(path).find(key) is None
    assert KeyStore(path).find(other) is not None


def test_every_option_reaches_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "keys.json"
    limits = "--rpm 1 --input-tpm 2 --output-tpm 3 --concurrency 4 --day-tokens 5 --month-tokens 6 --output-reserve 7"
    options = f"{limits} --priority -8 --expires 30d --models a,b --note hello"
    _create(path, capsys, *options.split())
    (record,) = read_keys(path)
    assert record.limits == CallerLimits(
        requests_per_minute=1,
        input_tokens_per_minute=2,
        output_tokens_per_minute=3,
        concurrency=4,
        tokens_per_day=5,
        tokens_per_month=6,
        output_reserve=7,
    )
    assert (record.models, record.priority, record.note) == (("a", "b"), -8, "hello")
    assert record.expires is not None
    assert record.expires - record.created == timedelta(days=30)
    assert abs(record.created - datetime.now(timezone.utc)) < timedelta(minutes=5)


def test_the_list_shows_everything_but_secrets(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "keys.json"
    key = _create(path, capsys, "--rpm", "1500", "--note", "[bold]for the app")
    assert main(["keys", "list", "--keys", str(path)]) == 0
    shown = capsys.readouterr().out
    (record,) = read_keys(path)
    assert record.id in shown
    assert "acme" in shown
    assert key.split("-", 3)[3] not in shown
    assert record.secret_sha256 not in shown


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--rpm", "0"], "requests_per_minute"),
        (["--priority", "101"], "priority"),
        (["--tenant", "x" * 65], "tenant"),
    ],
)
def test_what_the_gateway_could_not_read_is_not_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], said: str
) -> None:
    path = tmp_path / "keys.json"
    assert main(["keys", "create", "--keys", str(path), "--tenant", "acme", *options]) == 1
    assert said in capsys.readouterr().err
    assert not path.exists()


@pytest.mark.parametrize("expires", ["0d", "30", "d", "-1d", "30d30d"])
def test_a_time_that_is_none_is_wrong_usage(tmp_path: Path, expires: str) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["keys", "create", "--keys", str(tmp_path / "keys.json"), "--tenant", "acme", f"--expires={expires}"])
    assert caught.value.code == 2


def test_an_unknown_id_is_an_error_that_does_not_quote_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "keys.json"
    key = _create(path, capsys)
    assert main(["keys", "revoke", "--keys", str(path), key]) == 1
    assert key not in capsys.readouterr().err
    assert main(["keys", "list", "--keys", str(tmp_path / "absent")]) == 1
