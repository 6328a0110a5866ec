"""The process of the gateway from its start to its exit status: drain, above all."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.fakes.triton_http import FakeTriton, Script, tokens
from tests.gateway.http.certificates import name_of, trusting, write_certificate
from tests.gateway.http.room import Client, run, until
from tests.gateway.process import JSON, ROOT, GatewayProcess, completion
from trident_gateway.settings import TlsSettings

STREAM = json.dumps(completion(stream=True, max_tokens=35)).encode()
PLAIN = json.dumps(completion(max_tokens=20)).encode()


def paced(request: dict[str, Any]) -> Script:
    script = tokens(request)
    script.gap_s = 0.1
    return script


def hanging(request: dict[str, Any]) -> Script:
    script = tokens(request)
    script.hang_after = 2 if request.get("stream") else 0
    return script


async def begin(gateway: GatewayProcess, body: bytes) -> Client:
    client = await gateway.connect()
    client.send("POST", "/v1/completions", body, JSON)
    return client


async def begin_streams(gateway: GatewayProcess, count: int) -> list[Client]:
    """Return connections on each of which a stream has begun."""
    clients = [await begin(gateway, STREAM) for _ in range(count)]
    for client in clients:
        assert (await client.head()).status == 200
        assert (await client.chunk()).startswith(b"data: {")
    return clients


async def rest_of(client: Client) -> bytes:
    parts = []
    while part := await client.chunk():
        parts.append(part)
    return b"".join(parts)


async def probe(gateway: GatewayProcess, path: str) -> tuple[int, str]:
    reply = await gateway.ask(path, private=True)
    return reply.status, json.loads(reply.body)["status"]


def test_server_drains_without_losing_a_request() -> None:
    async def test() -> None:
        may_end = asyncio.Event()

        def held(request: dict[str, Any]) -> Script:
            """Hold a stream after its first word until it may end."""
            script = tokens(request)
            if request.get("stream"):
                script.gates = {1: may_end}
            return script

        async with FakeTriton(answer=held) as fake, GatewayProcess(fake, options=("--drain-delay", "5")) as gateway:
            streams = await begin_streams(gateway, 10)
            kept = await gateway.connect()
            kept.send("GET", "/v1/models")
            assert "connection" not in (await kept.reply()).headers
            loop = asyncio.get_running_loop()
            began = loop.time()
            gateway.signal()
            while await probe(gateway, "/ready") != (503, "draining"):
                pass
            assert await probe(gateway, "/live") == (200, "live")
            assert (await gateway.ask("/health")).status == 503

            # The socket stays open, old connections and new ones are served, and each is closed after its answer.
            kept.send("GET", "/v1/models")
            for reply in (await kept.reply(), await gateway.ask("/v1/completions", completion(max_tokens=1))):
                assert (reply.status, reply.headers["connection"]) == (200, "close")

            refused = await gateway.ask("/v1/completions", completion(max_tokens=1))
            while refused.status == 200:
                refused = await gateway.ask("/v1/completions", completion(max_tokens=1))
            assert loop.time() - began > 5.0
            assert (refused.status, refused.error()["code"]) == (503, "draining")
            assert refused.headers["connection"] == "close"
            assert refused.headers["retry-after"] == "1"
            assert refused.headers["x-should-retry"] == "true"
            assert await probe(gateway, "/live") == (200, "live")

            may_end.set()
            for client in streams:
                assert (await rest_of(client)).endswith(b"data: [DONE]\n\n")
            assert await gateway.status() == 0
            assert fake.ended["cancelled"] + fake.ended["left"] == 0
        assert {(record["status"], record["error"]) for record in gateway.records()} == {(200, False), (503, True)}

    run(test)


def test_server_cuts_what_has_not_ended_in_time_and_says_so() -> None:
    options = ("--drain-delay", "0", "--drain-timeout", "1")

    async def test() -> None:
        async with FakeTriton(answer=hanging) as fake, GatewayProcess(fake, options=options) as gateway:
            streams = await begin_streams(gateway, 10)
            plain = [await begin(gateway, PLAIN) for _ in range(2)]
            await until(lambda: len(fake.running) == 12)
            gateway.signal()
            for client in streams:
                rest = await rest_of(client)
                last = json.loads(rest.split(b"data: ")[-1])
                assert (last["error"]["type"], last["error"]["code"]) == ("server_error", "shutdown")
                assert b"[DONE]" not in rest
            for client in plain:
                reply = await client.reply()
                assert (reply.status, reply.error()["code"]) == (503, "shutdown")
            assert await gateway.status() == 3
            # The engines have been told.
            await until(lambda: fake.ended["cancelled"] + fake.ended["left"] == 12)
            assert len(fake.stops) == 12
        assert b"12 requests were cut" in gateway.errors
        assert {record["code"] for record in gateway.records()} == {"shutdown"}

    run(test)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_server_ends_at_once_at_a_second_signal(number: signal.Signals) -> None:
    async def test() -> None:
        async with FakeTriton(answer=hanging) as fake, GatewayProcess(fake) as gateway:
            (stream,) = await begin_streams(gateway, 1)
            gateway.signal(number)
            while await probe(gateway, "/ready") != (503, "draining"):
                pass
            gateway.signal(number)
            assert b'"shutdown"' in await rest_of(stream)
            assert await gateway.status() == 3

    run(test)


def test_server_takes_the_signal_after_a_request_to_drain_as_the_first_one() -> None:
    async def test() -> None:
        options = ("--drain-delay", "0.2")
        async with FakeTriton(answer=paced) as fake, GatewayProcess(fake, options=options) as gateway:
            (stream,) = await begin_streams(gateway, 1)
            reply = await gateway.ask("/drain", {}, private=True)
            assert (reply.status, json.loads(reply.body)) == (202, {"status": "draining"})
            assert await probe(gateway, "/ready") == (503, "draining")
            gateway.signal()
            assert (await rest_of(stream)).endswith(b"data: [DONE]\n\n")
            assert await gateway.status() == 0

    run(test)


def test_server_ends_with_idle_connections_and_with_clients_that_do_not_read() -> None:
    def flood(_request: dict[str, Any]) -> Script:
        return Script([{"text_output": "x" * 100_000, "output_ids": 1}] * 200)

    async def test() -> None:
        options = ("--drain-delay", "0", "--drain-timeout", "0.5")
        async with FakeTriton(answer=flood) as fake, GatewayProcess(fake, options=options) as gateway:
            idle = await gateway.connect()
            deaf = await begin(gateway, STREAM)
            assert (await deaf.head()).status == 200
            deaf.writer.transport.pause_reading()  # type: ignore[attr-defined]
            await until(lambda: fake.running)
            gateway.signal()
            assert await gateway.status() == 3
            assert await idle.rest() == b""

    run(test)


def test_server_shows_a_certificate_that_was_replaced_within_seconds(tmp_path: Path) -> None:
    files = TlsSettings(tmp_path / "cert.pem", tmp_path / "key.pem")
    write_certificate(files, "first")

    async def connect(gateway: GatewayProcess) -> tuple[Client, str]:
        reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port, ssl=trusting(), server_hostname="")
        return Client(reader, writer), name_of(writer)

    async def test() -> None:
        options = ("--tls-cert", str(files.certificate), "--tls-key", str(files.key), "--drain-delay", "0")
        async with FakeTriton(answer=paced) as fake, GatewayProcess(fake, options=options) as gateway:
            stream, name = await connect(gateway)
            assert name == "first"
            stream.send("POST", "/v1/completions", STREAM, JSON)
            assert (await stream.head()).status == 200
            write_certificate(files, "second", is_elliptic=True)
            while name != "second":
                client, name = await asyncio.wait_for(connect(gateway), 60)
                client.close()
            gateway.signal()
            assert (await rest_of(stream)).endswith(b"data: [DONE]\n\n")
            assert await gateway.status() == 0

    run(test)


def test_server_refuses_what_it_cannot_do_before_it_listens() -> None:
    for options, text in (
        (("--host", "0.0.0.0"), "trident keys create"),  # noqa: S104
        (("--tls-cert", "x.pem"), "--tls-key"),
        (("--server", "https://a:1"), "--server https://a:1"),
        (("--jwks-url", "https://a"), "--jwt-issuer"),
        (("--log-file", "/nowhere/x"), "--log-file /nowhere/x"),
        (("--keys", "/nowhere/keys"), "keys cannot be read"),
    ):
        done = subprocess.run(
            [sys.executable, "-m", "trident_tools.main", "gateway", "--port", "0", "--private-port", "0", *options],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 1
        assert text in done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed on this machine")
def test_server_says_where_it_is_and_how_to_use_it() -> None:
    async def test() -> None:
        async with FakeTriton() as fake, GatewayProcess(fake, options=("--drain-delay", "0")) as gateway:
            await until(lambda: b"print(" in gateway.output)
            text = gateway.output.decode()
            command = next(line.strip() for line in text.splitlines() if line.strip().startswith("curl "))
            done = await asyncio.create_subprocess_shell(command, stdout=asyncio.subprocess.PIPE)
            answer, _ = await asyncio.wait_for(done.communicate(), 60)
            assert json.loads(answer)["object"] == "text_completion"
            assert "nobody else can reach it" in text
            python = text[text.index("  from openai") :].splitlines()[:3]
            assert all(line.startswith("  ") for line in python)
            compile("\n".join(line.strip() for line in python), "announcement", "exec")
            gateway.signal()
            assert await gateway.status() == 0

    run(test)


def test_server_metrics_are_those_of_the_page() -> None:
    page = (ROOT / "docs" / "gateway.md").read_text(encoding="utf-8").split("## Metrics")[1].split("\n## ")[0]
    cells = re.findall(r"^\| (`[^|]+) \|", page, re.MULTILINE)
    told = {name for cell in cells for name in re.findall(r"`(\w+)`", cell)}

    async def test() -> None:
        async with FakeTriton() as fake, GatewayProcess(fake, options=("--drain-delay", "0")) as gateway:
            assert (await gateway.ask("/v1/completions", completion())).status == 200
            text = (await gateway.ask("/metrics", private=True)).body.decode()
        shown = set(re.findall(r"^# TYPE trident_gateway_(\w+) ", text, re.MULTILINE))
        assert shown | {"certificate_end_seconds"} == told
        assert {family.name for family in text_string_to_metric_families(text)}

    run(test)
