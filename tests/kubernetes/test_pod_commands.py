"""What the manifests tell the programs of a pod is what these programs understand."""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import importlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest

from tests.fakes.triton_http import FakeTriton
from tests.gateway.process import GatewayProcess
from tests.kubernetes.rendering import EXAMPLES, OVERLAYS, ROOT, Object, containers, named, option, steps, workloads
from tests.programs import needs
from trident_tools import build, gateway, serve
from trident_tools.gateway_settings.reading import read_settings
from trident_tools.main import Subcommand

pytestmark = needs("kubectl", "Kubernetes' own packages, which have it as kubectl")
each_overlay = pytest.mark.parametrize("overlay", [*OVERLAYS, *EXAMPLES])


def entrypoint(target: str) -> list[str]:
    """The entry point of an image, as the Dockerfile has it."""
    text = (ROOT / "docker/Dockerfile").read_text()
    (stage,) = re.findall(rf"^FROM \S+ AS {target}$(.*?)(?=^FROM |\Z)", text, re.MULTILINE | re.DOTALL)
    words: list[str] = json.loads(re.findall(r"^ENTRYPOINT (.+)$", stage, re.MULTILINE)[-1])
    return words


def parsed(command: Subcommand, words: list[str]) -> argparse.Namespace:
    """The options of a command line, by the real parser of the command."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    command.add_arguments(parser)
    return parser.parse_args(words)


def options_of(one: Object, target: str) -> list[str]:
    """What a container's program gets behind its command's name."""
    trident, _, *defaults = entrypoint(target)
    assert trident == "trident"
    return [*defaults, *one["args"]]


@each_overlay
def test_pod_gateways_are_told_what_they_understand(overlay: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRIDENT_LIMITS_STORE", raising=False)
    gateways = [one for workload in workloads(overlay) for one in containers(workload) if one["name"] == "gateway"]
    assert gateways
    for one in gateways:
        for variable in one.get("env", []):
            monkeypatch.setenv(variable["name"], variable.get("value", "0123").replace("$(REDIS_PASSWORD)", "0123"))
        settings = read_settings(parsed(gateway, options_of(one, "gateway")))
        ports = {port["name"]: port["containerPort"] for port in one["ports"]}
        assert ports == {"public": settings.port, "private": settings.private_port}
        assert (settings.host, settings.private_host) == ("0.0.0.0", "0.0.0.0")  # noqa: S104
        assert settings.asks_for_keys
        assert (settings.server_dns is not None) == (overlay in ("gateway", "multi-model", "redis"))
        assert (settings.drain_delay_s, settings.drain_timeout_s) == (15, 120)
        assert (settings.tls is not None) == (overlay == "tls") == (settings.port == 8443)
        assert settings.limits_store == ("redis://:0123@trident-redis:6379/0" if overlay == "redis" else None)
        if overlay == "redis":
            assert settings.num_replicas == named(overlay, "Deployment", "trident-gateway")["spec"]["replicas"]


@each_overlay
def test_pod_servers_are_told_what_they_understand(overlay: str) -> None:
    servers = [one for workload in workloads(overlay) for one in containers(workload) if one["name"] == "triton"]
    assert servers
    for one in servers:
        args = parsed(serve, options_of(one, "serve"))
        assert args.no_openai
        assert str(args.repository) in [mount["mountPath"] for mount in one["volumeMounts"]]
        assert args.host == "0.0.0.0"  # noqa: S104
        ports = {port["name"]: port["containerPort"] for port in one["ports"]}
        assert ports == {
            "triton-http": args.http_port, "triton-grpc": args.grpc_port, "triton-metrics": args.metrics_port,
        }  # fmt: skip
        assert args.drain_timeout == 120
        assert args.drain_delay == float(option(one, "--drain-delay") or -1)


def test_pod_that_builds_is_told_what_trident_build_understands() -> None:
    (one,) = steps(named("checkpoint", "Deployment", "trident"))
    trident, command, *words = one["command"]
    assert (trident, command) == ("trident", "build")
    args = parsed(build, words)
    paths = [mount["mountPath"] for mount in one["volumeMounts"]]
    assert str(args.repository) in paths
    assert str(args.checkpoint) in paths


def test_pod_that_looks_before_it_serves_is_told_what_trident_preflight_understands() -> None:
    (one,) = steps(named("preflight", "Deployment", "trident"))
    trident, name, *words = one["command"]
    assert (trident, name) == ("trident", "preflight")
    args = parsed(importlib.import_module(f"trident_tools.{name}"), words)
    assert str(args.repository) in [mount["mountPath"] for mount in one["volumeMounts"]]
    # It looks at the GPU that the server will have.
    assert one["resources"] == containers(named("preflight", "Deployment", "trident"))[0]["resources"]


@contextmanager
def answering(answers: dict[str, int]) -> Iterator[int]:
    """A server that answers each path with a status; yields its port."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(answers.get(self.path, 404))
            self.end_headers()

        def log_message(self, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


@pytest.mark.parametrize(
    ("triton", "gateway_status", "is_alive"),
    [
        (200, 200, True),
        (200, 503, False),  # the engine stands still
        (200, None, True),  # no gateway: it has a probe of its own, and may be on its way
        (503, 200, False),
        (None, 200, False),
    ],
)
def test_pod_liveness_of_triton_is_that_of_its_engine(
    triton: int | None, gateway_status: int | None, is_alive: bool
) -> None:
    server = containers(named("cpu", "Deployment", "trident"))[0]
    python, dash_c, script = server["livenessProbe"]["exec"]["command"]
    assert (python, dash_c) == ("python3", "-c")
    nobody = 1  # a port on which nothing listens
    with (
        answering({"/v2/health/live": triton} if triton else {}) as triton_port,
        answering({"/live": gateway_status} if gateway_status else {}) as gateway_port,
    ):
        script = script.replace("127.0.0.1:8000", f"127.0.0.1:{triton_port if triton else nobody}")
        script = script.replace("127.0.0.1:8081", f"127.0.0.1:{gateway_port if gateway_status else nobody}")
        environment = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
        done = subprocess.run(
            [sys.executable, "-c", script], check=False, capture_output=True, timeout=60, env=environment
        )
    assert (done.returncode == 0) == is_alive, done.stderr


def is_ready(one: Object, ports: Mapping[int, int]) -> bool:
    """Whether a container's readiness probe says so, of a pod whose ports are these ones of this machine."""
    probe = one["readinessProbe"]
    if "httpGet" in probe:
        number = probe["httpGet"]["port"]
        if isinstance(number, str):
            (number,) = [port["containerPort"] for port in one["ports"] if port["name"] == number]
        try:
            with urlopen(f"http://127.0.0.1:{ports[number]}{probe['httpGet']['path']}", timeout=10) as answer:
                return bool(200 <= answer.status < 400)
        except HTTPError:
            return False
    python, dash_c, script = probe["exec"]["command"]
    assert (python, dash_c) == ("python3", "-c")
    for inside, outside in ports.items():
        script = script.replace(f"127.0.0.1:{inside}", f"127.0.0.1:{outside}")
    return subprocess.run([sys.executable, "-c", script], check=False, capture_output=True, timeout=60).returncode == 0


@pytest.mark.slow
def test_pod_stays_ready_while_a_new_engine_loads_and_not_when_its_server_drains() -> None:
    beside = containers(named("cpu", "Deployment", "trident"))
    alone = containers(named("gateway", "Deployment", "trident"))

    async def main() -> None:
        async with FakeTriton() as triton, GatewayProcess(triton) as process:
            ports = {8000: triton.port, 8081: process.private_port}

            async def are_ready() -> list[bool]:
                return [await asyncio.to_thread(is_ready, one, ports) for one in [*beside, *alone]]

            async def become(*, expected: bool) -> None:
                while await are_ready() != [expected] * 3:
                    await asyncio.sleep(0.05)

            async def be_looked_at() -> None:
                before = triton.num_probes
                while triton.num_probes < before + 3:
                    await asyncio.sleep(0.05)

            assert await are_ready() == [True] * 3
            triton.only_loads, triton.is_ready = True, False
            await asyncio.wait_for(be_looked_at(), 60)
            assert await are_ready() == [True] * 3
            triton.only_loads = False
            await asyncio.wait_for(become(expected=False), 60)
            triton.is_ready = True
            await asyncio.wait_for(become(expected=True), 60)

    asyncio.run(main())


def test_pod_of_a_server_alone_is_not_ready_without_an_answer() -> None:
    (server,) = containers(named("gateway", "Deployment", "trident"))
    assert not is_ready(server, {8000: 1})  # nothing listens there


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Files of a model, and beside them the list of their digests."""
    for name in ("core/1/engine.json", "core/1/a file", "ensemble/config.pbtxt"):
        path = tmp_path / "models" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    (tmp_path / "models/ensemble/1").mkdir()
    sums = [
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  ./{path.relative_to(tmp_path / 'models')}\n"
        for path in (tmp_path / "models").rglob("*")
        if path.is_file()
    ]
    (tmp_path / "SHA256SUMS").write_text("".join(sums))
    return tmp_path / "models"


def check_digests(repository: Path) -> tuple[bool, str]:
    """What the step before the server says of a repository."""
    (one,) = steps(named("digest", "Deployment", "trident"))
    *shell, script = one["command"]
    script = script.replace("cd /models", f"cd {repository}")
    script = script.replace("/etc/trident/digests/SHA256SUMS", str(repository.parent / "SHA256SUMS"))
    done = subprocess.run([*shell, script], check=False, capture_output=True, text=True, timeout=60)
    return done.returncode == 0, done.stdout + done.stderr


def test_pod_that_checks_digests_takes_what_was_built(repository: Path) -> None:
    assert check_digests(repository) == (True, "")


def test_pod_that_checks_digests_refuses_whatever_has_changed(repository: Path) -> None:
    engine = repository / "core/1/engine.json"
    text = engine.read_text()
    engine.write_text("another")
    is_right, said = check_digests(repository)
    assert not is_right
    assert "core/1/engine.json: FAILED" in said
    engine.unlink()
    assert not check_digests(repository)[0]
    engine.write_text(text)
    assert check_digests(repository)[0]
    (repository / "core/2").mkdir()
    (repository / "core/2/engine.json").write_text("newer")  # which Triton would serve
    is_right, said = check_digests(repository)
    assert not is_right
    assert "has files that" in said
