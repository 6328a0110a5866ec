"""Two tenants behind one gateway: what one does reaches the other in no way."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.triton_http import FakeTriton, Script, tokens
from tests.gateway.http.room import JSON, Reply, Room, run, until
from tests.gateway.upstream.driver import routing
from trident_ensemble.contract.model_card import ModelCard
from trident_gateway.access.authenticator import Authenticator
from trident_gateway.access.key_file import change_keys, new_key
from trident_gateway.access.keys import KeyStore
from trident_gateway.api.openai_api import ApiContext, endpoints
from trident_gateway.callers import CallerLimits
from trident_gateway.limits.limiter import Limiter
from trident_gateway.limits.memory import MemoryStore
from trident_gateway.settings import GatewaySettings

_CARDS = [ModelCard(name, 1_700_000_000, 4096, takes_messages=True, digest=name) for name in ("demo", "secret")]


@dataclass
class _House:
    """A gateway in front of a server, and a key of each of two tenants."""

    room: Room
    triton: FakeTriton
    store: MemoryStore
    keys: dict[str, str]

    def headers(self, tenant: str) -> dict[str, str]:
        return {**JSON, "authorization": f"Bearer {self.keys[tenant]}"}

    async def ask(self, caller: str, **fields: Any) -> Reply:
        return await self.room.ask("POST", "/v1/completions", _body(**fields), self.headers(caller))


def _body(**fields: Any) -> bytes:
    return json.dumps({"model": "demo", "prompt": "x", "max_tokens": 4, **fields}).encode()


@asynccontextmanager
async def _house(tmp_path: Path, triton: FakeTriton, **limits: CallerLimits) -> AsyncIterator[_House]:
    keys, path = {}, tmp_path / "keys.json"
    for tenant, models in (("a", ("demo",)), ("b", None)):
        key, record = new_key(
            tenant, datetime.now(timezone.utc), models=models, limits=limits.get(tenant, CallerLimits())
        )
        change_keys(path, lambda known, record=record: (*known, record))  # type: ignore[misc]
        keys[tenant] = key
    store = MemoryStore()
    async with routing(triton) as router:
        context = ApiContext(GatewaySettings(keys_file=path), router, Authenticator(KeyStore(path)), Limiter(store))
        async with Room(*endpoints(context)) as room:
            yield _House(room, triton, store, keys)


def test_a_flood_of_one_tenant_leaves_the_limits_of_the_other(tmp_path: Path) -> None:
    async def main() -> None:
        limits = CallerLimits(requests_per_minute=5, output_tokens_per_minute=100)
        async with _house(tmp_path, FakeTriton(*_CARDS), a=limits, b=limits) as house:
            flood = await asyncio.gather(*(house.ask("a") for _ in range(40)))
            assert sorted({reply.status for reply in flood}) == [200, 429]
            assert sum(reply.status == 200 for reply in flood) == 5
            first = await house.ask("b")
            assert first.status == 200
            assert first.headers["x-ratelimit-remaining-requests"] == "4"
            assert first.headers["x-ratelimit-remaining-tokens"] == "96"
            assert [(await house.ask("b")).status for _ in range(5)] == [200, 200, 200, 200, 429]
            assert house.store.num_in_flight == 0

    run(main)


def test_streams_that_fill_one_tenants_concurrency_leave_the_other_free(tmp_path: Path) -> None:
    async def main() -> None:
        hanging = FakeTriton(*_CARDS, answer=lambda asked: Script(tokens(asked).events, hang_after=1))
        one = CallerLimits(concurrency=1)
        async with _house(tmp_path, hanging, a=one, b=one) as house:
            client = await house.room.connect()
            client.send("POST", "/v1/completions", _body(stream=True), house.headers("a"))
            assert (await client.head()).status == 200
            assert (await house.ask("a")).status == 429
            hanging.answer = tokens
            assert (await house.ask("b")).status == 200
            client.close()
            await until(lambda: house.store.num_in_flight == 0)
            assert (await house.ask("a")).status == 200

    run(main)


def test_the_same_id_of_two_tenants_is_two_requests(tmp_path: Path) -> None:
    """Both choose the same id; when one hangs up, the other's answer goes on."""

    async def main() -> None:
        hanging = FakeTriton(*_CARDS, answer=lambda asked: Script(tokens(asked).events, hang_after=1))
        async with _house(tmp_path, hanging) as house:
            clients = {}
            for tenant in ("a", "b"):
                clients[tenant] = await house.room.connect()
                headers = {**house.headers(tenant), "x-request-id": "chosen"}
                clients[tenant].send("POST", "/v1/completions", _body(stream=True, user="chosen"), headers)
                assert (await clients[tenant].head()).headers["x-request-id"] == "chosen"
            a, b = (running.body for running in hanging.requests)
            assert (a["tenant"], b["tenant"]) == ("a", "b")
            assert (a["cache_salt"], b["cache_salt"]) == ("a", "b")
            assert a["id"] != b["id"]
            assert "chosen" not in (a["id"], b["id"])
            clients["a"].close()
            await until(lambda: hanging.stops)
            assert [(stop["id"], stop["tenant"]) for stop in hanging.stops] == [(a["id"], "a")]
            assert [running.body["id"] for running in hanging.running] == [b["id"]]
            clients["b"].close()

    run(main)


@pytest.mark.parametrize("field", ["tenant", "cache_salt", "id", "request_id", "prompt_token_ids"])
def test_no_client_names_what_the_gateway_names(tmp_path: Path, field: str) -> None:
    async def main() -> None:
        async with _house(tmp_path, FakeTriton(*_CARDS)) as house:
            reply = await house.ask("a", **{field: "b"})
            assert (reply.status, reply.error()["code"], reply.error()["param"]) == (400, "unknown_parameter", field)
            claimed = {**house.headers("a"), "tenant": "b", "x-tenant": "b", "cache-salt": "b"}
            assert (await house.room.ask("POST", "/v1/completions", _body(), claimed)).status == 200
            assert [running.body["tenant"] for running in house.triton.requests] == ["a"]

    run(main)


def test_a_model_of_the_other_looks_as_if_it_were_not_there(tmp_path: Path) -> None:
    async def main() -> None:
        async with _house(tmp_path, FakeTriton(*_CARDS)) as house:
            answers = [await house.ask("a", model=name) for name in ("secret", "absent")]
            texts = [
                reply.body.replace(name, b"?") for reply, name in zip(answers, (b"secret", b"absent"), strict=True)
            ]
            assert [reply.status for reply in answers] == [404, 404]
            assert texts[0] == texts[1]
            for path in ("/v1/models/secret", "/v1/models/absent"):
                assert (await house.room.ask("GET", path, headers=house.headers("a"))).status == 404
            listed = {}
            for tenant in ("a", "b"):
                reply = await house.room.ask("GET", "/v1/models", headers=house.headers(tenant))
                listed[tenant] = {model["id"] for model in json.loads(reply.body)["data"]}
            assert listed == {"a": {"demo"}, "b": {"demo", "secret"}}
            assert (await house.ask("b", model="secret")).status == 200

    run(main)
