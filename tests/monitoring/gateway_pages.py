"""Pages of metrics of real gateways that have had everything happen to them that metrics tell of.

Owns what happens. Never a server but doubles.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from tests.fakes.triton_http import FakeTriton, Script, refusal, tokens
from tests.gateway.http.certificates import write_certificate
from tests.gateway.process import JSON, GatewayProcess, completion
from trident_ensemble.contract.model_card import ModelCard
from trident_gateway.access.key_file import change_keys, new_key
from trident_gateway.callers import CallerLimits
from trident_gateway.settings import TlsSettings

#: Numbers of tokens that are not answered as others are.
FAILS, IS_REPEATED, IS_SLOW = 7, 9, 1000
DRAIN = ("--drain-delay", "0")


async def page_of(gateway: GatewayProcess) -> str:
    """Return its page of metrics."""
    reply = await gateway.ask("/metrics", private=True)
    assert reply.status == 200
    return reply.body.decode()


def make_keys(file: Path, *tenants: str, limits: CallerLimits | None = None) -> list[dict[str, str]]:
    """Add a key for each tenant; return the header that each of them sends."""
    made = [new_key(tenant, datetime.now(timezone.utc), limits=limits or CallerLimits()) for tenant in tenants]
    change_keys(file, lambda keys: (*keys, *(record for _, record in made)))
    return [{"authorization": f"Bearer {key}"} for key, _ in made]


async def eventful_page(folder: Path) -> str:
    """Return the page of a gateway with answers, failures, refusals, a hang-up and servers that disagree."""
    keys = folder / "keys.json"
    [whole] = make_keys(keys, "acme")
    [spent] = make_keys(keys, "spent", limits=CallerLimits(requests_per_minute=1))

    has_refused = False

    def scripted(request: dict[str, Any]) -> Script:
        nonlocal has_refused
        if request.get("max_tokens") == FAILS:
            return refusal("[INTERNAL] broken", 500)
        if request.get("max_tokens") == IS_REPEATED and not has_refused:
            has_refused = True
            return refusal("[UNAVAILABLE] draining: the server is shutting down")
        script = tokens(request)
        script.gap_s = 0.1 if request.get("max_tokens") == IS_SLOW else 0.0
        return script

    demo, two = ModelCard("demo", 1_700_000_000, 4096, digest="d0"), ModelCard("two", 1_700_000_000, 4096, digest="d0")
    first = FakeTriton(demo, answer=scripted)
    second = FakeTriton(demo, two, answer=scripted)
    third = FakeTriton(replace(two, digest="d1"))
    async with first, second, third:
        async with GatewayProcess(first, second, third, options=(*DRAIN, "--keys", str(keys))) as gateway:
            path = "/v1/completions"
            for count in (5, FAILS, IS_REPEATED, 5):
                await gateway.ask(path, completion(max_tokens=count), whole)
                await gateway.ask(path, completion(max_tokens=count, stream=True), whole)
            statuses = [(await gateway.ask(path, completion(max_tokens=1), spent)).status for _ in range(2)]
            assert 429 in statuses
            client = await gateway.connect()
            client.send(
                "POST", path, json.dumps(completion(stream=True, max_tokens=IS_SLOW)).encode(), {**JSON, **whole}
            )
            await client.head()
            client.close()
            garbage = await gateway.connect()
            garbage.writer.write(b"\x00\x01 no HTTP\r\n\r\n")
            await garbage.rest()
            garbage.close()
            page = await page_of(gateway)
            while "client_gone_total{" not in page:
                await asyncio.sleep(0.05)
                page = await page_of(gateway)
            return page


async def page_with_a_canary(folder: Path) -> str:
    """Return the page of a gateway with a canary, whose certificate was replaced by one that cannot be used."""
    files = TlsSettings(folder / "cert.pem", folder / "key.pem")
    write_certificate(files, "localhost", is_elliptic=True)
    routes = folder / "routes.json"
    options = (*DRAIN, "--tls-cert", str(files.certificate), "--tls-key", str(files.key), "--routes", str(routes))
    async with FakeTriton() as stable, FakeTriton() as canary:
        servers = [{"url": canary.address.url, "metrics_url": canary.address.metrics_url}]
        routes.write_text(json.dumps({"format": 1, "canary": {"servers": servers, "weight": 10}}))
        async with GatewayProcess(stable, options=options) as gateway:
            files.certificate.write_text("broken")
            page = await page_of(gateway)
            while not ('part="tls"' in page and 'server_ready{server="' in page and 'side="canary"} 1.0' in page):
                await asyncio.sleep(0.05)
                page = await page_of(gateway)
            return page
