"""The real process of a gateway during a rollout: sides by keys, and what its metrics and its log say of them."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.fakes.triton_http import FakeTriton, Script, tokens
from tests.gateway.process import GatewayProcess, completion
from tests.gateway.upstream.driver import RoutesFile
from tests.ports import free_ports
from trident_ensemble.contract.model_card import ModelCard
from trident_gateway.access.key_file import change_keys, new_key
from trident_gateway.upstream.sides import position

OLD = ModelCard("demo", 5, 4096, digest="old")
NEW = ModelCard("demo", 9, 4096, digest="new")


def _keys(path: Path) -> dict[bool, str]:
    """Make a key that is below half of all positions and one that is not; return them by that."""
    found: dict[bool, str] = {}
    records = []
    while len(found) < 2:
        key, record = new_key("t", datetime.now(timezone.utc))
        found[position(record.id.encode()) < 50] = key
        records.append(record)
    change_keys(path, lambda _: tuple(records))
    return found


async def _metrics(gateway: GatewayProcess) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    text = (await gateway.ask("/metrics", private=True)).body.decode()
    return {
        (sample.name.removeprefix("trident_gateway_"), tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def _labels(**labels: str) -> tuple[tuple[str, str], ...]:
    return tuple(sorted(labels.items()))


async def _until(condition: Callable[[dict[tuple[str, tuple[tuple[str, str], ...]], float]], bool],
                 gateway: GatewayProcess) -> None:  # fmt: skip
    while not condition(await _metrics(gateway)):
        await asyncio.sleep(0.05)


async def _agent(port: int) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    line = await reader.read()
    writer.close()
    return line


def test_gateway_divides_keys_between_two_sides_and_says_which_has_answered(tmp_path: Path) -> None:
    async def main() -> None:
        keys, routes = _keys(tmp_path / "keys"), RoutesFile(tmp_path / "routes")
        (agent_port,) = free_ports(1)
        options = (
            "--routes", str(routes.path), "--keys", str(tmp_path / "keys"), "--agent-port", str(agent_port),
            "--drain-delay", "30",
        )  # fmt: skip
        async with FakeTriton(OLD) as stable, FakeTriton(NEW) as canary:
            canary.figures["core"] = (10, 0, 0.5)
            stable.answer = canary.answer = lambda body: Script(tokens(body).events, gap_s=0.02)
            async with GatewayProcess(stable, options=options) as gateway:
                routes.write([canary], 50)
                ready = _labels(server=canary.name, side="canary")
                await _until(lambda found: found.get(("server_ready", ready)) == 1, gateway)
                for is_below, key in keys.items():
                    headers = {"authorization": f"Bearer {key}"}
                    body = completion(max_tokens=4, stream=True)
                    assert (await gateway.ask("/v1/completions", body, headers)).status == 200
                    shown = json.loads((await gateway.ask("/v1/models/demo", headers=headers)).body)
                    assert shown["x_trident"]["digest"] == ("new" if is_below else "old")
                assert (len(stable.requests), len(canary.requests)) == (1, 1)
                found = await _metrics(gateway)
                route = {"route": "/v1/completions", "model": "demo"}
                for side in ("stable", "canary"):
                    assert found["requests_total", _labels(**route, code="200", side=side)] == 1
                    assert found["request_seconds_count", _labels(**route, side=side)] == 1
                    assert found["ttft_seconds_count", _labels(model="demo", side=side)] == 1
                    assert found["itl_seconds_count", _labels(model="demo", side=side)] >= 1
                    assert found["finishes_total", _labels(model="demo", reason="length", side=side)] == 1
                    assert found["route_weight", _labels(side=side)] == 50
                assert found["routes_failures_total", ()] == 0
                records = [one for one in gateway.records() if one["route"] == "/v1/completions"]
                assert {record["upstream"]: record["side"] for record in records} == {
                    stable.name: "stable", canary.name: "canary",
                }  # fmt: skip
                assert await _agent(agent_port) == b"ready up 75%\n"
                routes.write_text("{")
                await _until(lambda found: found["routes_failures_total", ()] == 1, gateway)
                assert (await _metrics(gateway))["route_weight", _labels(side="canary")] == 50
                gateway.signal()
                while await _agent(agent_port) != b"drain\n":
                    await asyncio.sleep(0.05)
                gateway.signal()
                assert await gateway.status() == 0

    asyncio.run(asyncio.wait_for(main(), 60))


def test_gateway_finds_its_servers_by_a_name() -> None:
    async def main() -> None:
        async with FakeTriton(OLD) as fake:
            options = (
                "--server-dns", f"http://127.0.0.1:{fake.port}", "--server-dns-metrics-port", str(fake.metrics_port),
                "--drain-delay", "0",
            )  # fmt: skip
            async with GatewayProcess(options=options) as gateway:
                assert (await gateway.ask("/v1/completions", completion())).status == 200
                assert (await _metrics(gateway))["server_ready", _labels(server=fake.name, side="stable")] == 1
                gateway.signal()
                assert await gateway.status() == 0

    asyncio.run(asyncio.wait_for(main(), 60))


def test_gateway_with_a_routes_file_that_cannot_be_read_does_not_start(tmp_path: Path) -> None:
    async def main() -> None:
        for path, text in ((tmp_path / "absent", ""), (tmp_path / "broken", '{"format": 1, "canry": {}}')):
            if text:
                path.write_text(text, encoding="utf-8")
            gateway = GatewayProcess(options=("--routes", str(path)))
            with pytest.raises(AssertionError, match=f"--routes {path}"):
                await gateway.__aenter__()
            await gateway.__aexit__(None, None, None)

    asyncio.run(asyncio.wait_for(main(), 60))


def test_gateway_is_not_ready_within_fifteen_seconds_when_its_only_server_hangs() -> None:
    """Its pages go on answering with old numbers; it is alive, and ready again with the engine's next step."""

    async def main() -> None:
        gate = asyncio.Event()
        async with FakeTriton(OLD) as fake, GatewayProcess(fake, options=("--drain-delay", "0")) as gateway:
            fake.answer = lambda body: Script(tokens(body).events, gates={1: gate})
            running = asyncio.ensure_future(gateway.ask("/v1/completions", completion(max_tokens=4, stream=True)))
            while not fake.num_steps:
                await asyncio.sleep(0.01)
            begin = time.monotonic()
            while (await gateway.ask("/ready", private=True)).status == 200:
                await asyncio.sleep(0.1)
            assert 10 <= time.monotonic() - begin + 1 < 16
            assert (await gateway.ask("/live", private=True)).status == 200
            gate.set()
            assert (await running).status == 200
            while (await gateway.ask("/ready", private=True)).status == 503:
                await asyncio.sleep(0.1)
            gateway.signal()
            assert await gateway.status() == 0

    asyncio.run(asyncio.wait_for(main(), 60))
