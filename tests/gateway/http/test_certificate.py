"""TLS on the public port, and certificates that change while it is open."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path

import pytest

from tests.gateway.http.certificates import name_of, trusting, write_certificate
from tests.gateway.http.room import JSON, Client, Room, echo, endpoint, run
from trident_ensemble.contract.errors import ConfigError
from trident_gateway.api.interface import AnswerSink, HttpRequest
from trident_gateway.http.certificate import Certificate
from trident_gateway.settings import TlsSettings


@pytest.fixture
def files(tmp_path: Path) -> TlsSettings:
    made = TlsSettings(tmp_path / "cert.pem", tmp_path / "key.pem")
    write_certificate(made, "first")
    return made


async def connect(room: Room, server_name: str | None = None) -> tuple[Client, str]:
    """Return a connection and the name on the certificate that was shown."""
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", room.port, ssl=trusting(), server_hostname=server_name or ""
    )
    return Client(reader, writer), name_of(writer)


def test_certificate_that_changes_is_shown_to_new_connections_and_hurts_no_stream(files: TlsSettings) -> None:
    gate: asyncio.Event

    @endpoint("/v1/stream")
    async def stream(request: HttpRequest, out: AnswerSink) -> None:
        await request.body()
        out.expect_events()
        await out.send_events(b"data: 1\n\n")
        await gate.wait()
        await out.end_events(b"data: 2\n\n")

    async def test() -> None:
        nonlocal gate
        gate = asyncio.Event()
        ends: list[float] = []
        failures: list[str] = []
        certificate = Certificate(files, ends.append, failures.append)
        async with Room(echo, stream, tls=certificate.context) as room:
            client, name = await connect(room)
            assert name == "first"
            client.send("POST", "/v1/stream", b"{}", JSON)
            await client.head()
            assert await client.chunk() == b"data: 1\n\n"

            # A key of another kind: both would be shown, if the context had been given the new one in addition.
            write_certificate(files, "second", is_elliptic=True, days=9)
            certificate.look()
            for server_name in (None, "a.example"):
                other, name = await connect(room, server_name)
                assert name == "second"
                other.send("POST", "/v1/x", b"{}", JSON)
                assert (await other.reply()).status == 200
                other.close()
            assert ends[1] - ends[0] == pytest.approx(8 * 86400, abs=60)

            files.key.write_text("no key")
            certificate.look()
            certificate.look()
            assert len(failures) == 1
            assert str(files.key) not in failures[0]
            other, name = await connect(room)
            assert name == "second"
            other.close()

            write_certificate(files, "third")
            certificate.look()
            other, name = await connect(room)
            assert name == "third"
            other.close()

            gate.set()
            assert await client.chunk() == b"data: 2\n\n"
            client.close()

    run(test)


def test_certificate_context_refuses_old_versions(files: TlsSettings) -> None:
    async def test() -> None:
        certificate = Certificate(files, lambda _: None, lambda _: None)
        async with Room(echo, tls=certificate.context) as room:
            with pytest.raises((ssl.SSLError, ConnectionError)):
                await asyncio.open_connection("127.0.0.1", room.port, ssl=trusting(ssl.TLSVersion.TLSv1_1))
            _, writer = await asyncio.open_connection("127.0.0.1", room.port, ssl=trusting())
            assert writer.get_extra_info("ssl_object").version() in ("TLSv1.2", "TLSv1.3")
            writer.close()

    run(test)


def test_certificate_files_are_looked_at_again_and_again(files: TlsSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trident_gateway.http.certificate._LOOK_EVERY_S", 0.02)

    async def test() -> None:
        certificate = Certificate(files, lambda _: None, lambda _: None)
        certificate.start()
        async with Room(echo, tls=certificate.context) as room:
            write_certificate(files, "second")
            name = ""
            while name != "second":
                client, name = await connect(room)
                client.close()
        certificate.close()

    run(test)


@pytest.mark.parametrize("content", ["", "no PEM"])
def test_certificate_that_is_none_fails_the_start(files: TlsSettings, content: str) -> None:
    files.certificate.write_text(content)
    with pytest.raises(ConfigError, match="--tls-cert"):
        Certificate(files, lambda _: None, lambda _: None)
    files.certificate.unlink()
    with pytest.raises(ConfigError, match="No such file"):
        Certificate(files, lambda _: None, lambda _: None)


def test_port_gives_up_on_a_handshake_that_does_not_come(files: TlsSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trident_gateway.http.listening._HANDSHAKE_TIMEOUT_S", 0.1)

    async def test() -> None:
        certificate = Certificate(files, lambda _: None, lambda _: None)
        async with Room(echo, tls=certificate.context) as room:
            silent = await room.connect()
            assert await silent.rest() == b""
            silent.close()

    run(test)
