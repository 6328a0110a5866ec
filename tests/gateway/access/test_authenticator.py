"""From a request's header to its caller."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Coroutine
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.gateway.access.identity import KEY_SET, jwt_settings, signed_token
from trident_gateway.access.authenticator import Authenticator
from trident_gateway.access.key_file import change_keys, new_key
from trident_gateway.access.keys import KeyStore
from trident_gateway.access.tokens import TokenVerifier
from trident_gateway.callers import Caller
from trident_gateway.errors import ApiError
from trident_gateway.settings import GatewaySettings


def _run(main: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(main, 60))


def test_every_refusal_is_the_same(tmp_path: Path) -> None:
    provided = tmp_path / "jwks.json"
    provided.write_text(json.dumps(KEY_SET))
    path = tmp_path / "keys.json"
    key, record = new_key("acme", datetime.now(timezone.utc))
    past = datetime(2026, 1, 1, tzinfo=timezone.utc)
    expired, expired_record = new_key("acme", past, expires=past)
    revoked, revoked_record = new_key("acme", past)
    revoked_record = msgspec.structs.replace(revoked_record, revoked=past)
    change_keys(path, lambda _: (record, expired_record, revoked_record))

    async def main() -> None:
        authenticator = Authenticator(KeyStore(path), TokenVerifier(jwt_settings(provided)))
        assert (await authenticator.authenticate(f"bearer {key}")).tenant == "acme"
        assert (await authenticator.authenticate(f"Bearer {signed_token()}")).tenant == "user"
        answers = set()
        stale = (expired, revoked, signed_token(exp=1), f"{key}x", "unknown")
        for sent in (None, "", key, "Bearer", f"Basic {key}", *(f"Bearer {credential}" for credential in stale)):
            with pytest.raises(ApiError) as caught:
                await authenticator.authenticate(sent)
            answers.add((caught.value.status, caught.value.body(), caught.value.headers))
        assert len(answers) == 1
        status, body, headers = answers.pop()
        assert status == 401
        assert json.loads(body)["error"]["code"] == "invalid_api_key"
        assert (b"www-authenticate", b"Bearer") in headers
        await authenticator.close()

    _run(main())


def test_a_gateway_without_keys_lets_everybody_in() -> None:
    caller: Caller = _run(Authenticator().authenticate("Bearer anything"))
    assert (caller.tenant, caller.models, caller.limits.bounds_anything) == ("", None, False)


def test_what_the_settings_name_is_watched_from_the_start(tmp_path: Path) -> None:
    async def main() -> None:
        path, provided, plans = tmp_path / "keys.json", tmp_path / "jwks.json", tmp_path / "plans.json"
        key, record = new_key("acme", datetime.now(timezone.utc))
        change_keys(path, lambda _: (record,))
        provided.write_text(json.dumps(KEY_SET))
        plans.write_text('{"plans": {"default": {"priority": 5}}}')
        tokens = jwt_settings(provided, plans_file=plans)
        authenticator = Authenticator.of(GatewaySettings(keys_file=path, jwt=tokens))
        await authenticator.start()
        assert (await authenticator.authenticate(f"Bearer {key}")).key_id == record.id
        assert (await authenticator.authenticate(f"Bearer {signed_token()}")).priority == 5
        assert (authenticator.is_open, authenticator.num_stale_files, authenticator.num_failed_fetches) == (False, 0, 0)
        for file in (path, plans):
            file.write_text("{")
        while authenticator.num_stale_files < 2:
            await asyncio.sleep(0.05)
        assert (await authenticator.authenticate(f"Bearer {key}")).key_id == record.id
        assert (await authenticator.authenticate(f"Bearer {signed_token()}")).priority == 5
        await authenticator.close()

    _run(main())


def test_settings_without_keys_make_an_open_gateway() -> None:
    assert Authenticator.of(GatewaySettings()).is_open
