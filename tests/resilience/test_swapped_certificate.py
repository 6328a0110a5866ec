"""A certificate that is replaced while a gateway serves, by a good one and by one that is none."""

from __future__ import annotations

import asyncio
from pathlib import Path

from tests.fakes.triton_http import FakeTriton
from tests.gateway.http.certificates import name_of, trusting, write_certificate
from tests.gateway.http.room import Client, run
from tests.gateway.process import JSON, GatewayProcess
from tests.resilience.load import PATH, body
from tests.resilience.metrics import metric
from tests.resilience.pairs import paced
from trident_gateway.settings import TlsSettings


def test_swapped_certificate_is_shown_within_ten_seconds_and_a_wrong_one_never(tmp_path: Path) -> None:
    files = TlsSettings(tmp_path / "cert.pem", tmp_path / "key.pem")
    write_certificate(files, "first")

    async def connect(gateway: GatewayProcess) -> tuple[Client, str, str | None]:
        reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port, ssl=trusting(), server_hostname="")
        return Client(reader, writer), name_of(writer), writer.get_extra_info("ssl_object").selected_alpn_protocol()

    async def test() -> None:
        options = ("--tls-cert", str(files.certificate), "--tls-key", str(files.key), "--drain-delay", "0")
        async with FakeTriton(answer=paced(0.1)) as fake, GatewayProcess(fake, options=options) as gateway:
            loop = asyncio.get_running_loop()
            stream, name, _ = await connect(gateway)
            assert name == "first"
            stream.send("POST", PATH, body(stream=True, max_tokens=60), JSON)
            assert (await stream.head()).status == 200

            files.certificate.write_text("no certificate")
            while not await metric(gateway, "failures_total", part="tls"):
                await asyncio.sleep(0.05)
            client, name, _ = await connect(gateway)
            assert name == "first"
            client.close()

            write_certificate(files, "second", is_elliptic=True)
            written_at = loop.time()
            while name != "second":
                client, name, _ = await connect(gateway)
                client.close()
            assert loop.time() - written_at < 10

            received = b""
            while part := await stream.chunk():
                received += part
            assert received.endswith(b"data: [DONE]\n\n")

    run(test)
