"""The end of `trident serve` with a gateway: both refuse after their delay, and what the gateway has goes on."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
from pathlib import Path

from tests.e2e.server import Server, get, post, serve, until
from tests.fakes.triton_http import FakeTriton
from tests.gateway.http.room import run
from tests.gateway.http.room import until as comes
from tests.gateway.process import GatewayProcess
from tests.ports import free_ports
from tests.resilience.forwarder import Forwarder
from tests.resilience.load import loading
from trident_ensemble.contract.model_card import ModelCard

NUM_TOKENS = 2000
#: Bytes that Linux holds at most for a client that reads nothing.
MOST_BUFFERED = int(Path("/proc/sys/net/ipv4/tcp_wmem").read_text(encoding="ascii").split()[2])


def test_gateway_drain_withdraws_the_server_while_a_stream_of_the_gateway_goes_on(
    narrow_repository: Path, tmp_path: Path
) -> None:
    """The client reads its stream only when everything else has been seen, so the gateway has it until then."""
    port, private_port = free_ports(2)
    ports = ("--openai-port", str(port), "--openai-private-port", str(private_port))
    with serve(narrow_repository, tmp_path / "log", *ports, "--drain-timeout", "180") as server:
        until(lambda: "OpenAI's API: " in server.log.read_text(errors="replace"), 60, "the gateway is ready")
        name = only_model(port)
        body = {
            "model": name,
            "messages": [{"role": "user", "content": "hello"}],
            "max_completion_tokens": NUM_TOKENS,
            "n": 2,
            "ignore_eos": True,
            "logprobs": True,
            "top_logprobs": 20,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.settimeout(60)
            client.connect(("127.0.0.1", port))
            client.sendall(request(port, "POST", "/v1/chat/completions", body))
            received = client.recv(200)
            assert received.startswith(b"HTTP/1.1 200")
            server.process.send_signal(signal.SIGTERM)

            until(lambda: get(server, "/v2/health/ready") != 200, 60, "the server withdraws")
            status, answer = 200, ""
            while status == 200:  # until the gateway has handed over what it had accepted
                status, answer = post(server, "/v2/models/ensemble/generate", {"text_input": "late", "max_tokens": 1})
            assert status in (400, 503)  # Triton 2.51 answers 400 whatever the code of the error
            assert "draining" in answer
            assert server.process.poll() is None
            late = ask(port, "POST", "/v1/completions", {"model": name, "prompt": "late", "max_tokens": 1})
            assert late.startswith(b"HTTP/1.1 503")

            while part := client.recv(1 << 16):
                received += part
        assert len(received) > MOST_BUFFERED, "the kernel would have held it all"
        assert b"data: [DONE]" in received
        assert f'"completion_tokens":{2 * NUM_TOKENS}'.encode() in received
        assert server.process.wait(60) == 0, server.log.read_text(errors="replace")[-4000:]


def test_gateway_drain_of_trident_serve_behind_a_late_balancer_loses_no_request(
    narrow_repository: Path, tmp_path: Path
) -> None:
    """The other one is a double, so that there is somewhere to go."""
    port, private_port = free_ports(2)
    ports = ("--openai-port", str(port), "--openai-private-port", str(private_port))

    async def test(server: Server) -> None:
        name = only_model(port)
        async with (
            FakeTriton(ModelCard(name, 1_700_000_000, 4096, digest="d0")) as fake,
            GatewayProcess(fake) as other,
            Forwarder(port, other.port) as forwarder,
            loading(forwarder.port) as load,
        ):
            load.begin(10, stream=False, max_tokens=4, every_s=0.3, model=name)
            load.begin(3, stream=True, max_tokens=100, every_s=0.3, model=name)
            await comes(lambda: load.num_answered > 50)
            server.process.send_signal(signal.SIGTERM)
            await asyncio.sleep(1.0)  # the balancer learns of it
            forwarder.targets.remove(port)
            assert await asyncio.to_thread(server.process.wait, 60) == 0
            await load.end()
            assert load.lost == {}
            assert fake.requests

    with serve(narrow_repository, tmp_path / "log", *ports, "--drain-delay", "2.5") as server:
        until(lambda: "OpenAI's API: " in server.log.read_text(errors="replace"), 60, "the gateway is ready")
        run(lambda: test(server))


def only_model(port: int) -> str:
    """The name of the one model."""
    answer = ask(port, "GET", "/v1/models")
    (model,) = json.loads(answer.partition(b"\r\n\r\n")[2])["data"]
    return str(model["id"])


def request(port: int, method: str, path: str, body: object = None) -> bytes:
    """Its bytes; the connection is closed after it."""
    content = b"" if body is None else json.dumps(body).encode()
    head = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
    return head.encode() + content


def ask(port: int, method: str, path: str, body: object = None) -> bytes:
    """The whole answer."""
    with socket.create_connection(("127.0.0.1", port), 60) as client:
        client.sendall(request(port, method, path, body))
        received = b""
        while part := client.recv(1 << 16):
            received += part
    return received
