"""Starts the real `trident serve` on free ports and always stops it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tests.child_processes import tied
from tests.fakes.deployment import without_gateway
from tests.ports import free_ports

START_SECONDS = 300
STOP_SECONDS = 120


class Started(Protocol):
    """A server that has been started."""

    @property
    def process(self) -> subprocess.Popen[bytes]: ...

    @property
    def log(self) -> Path: ...

    def url(self, path: str) -> str: ...


@dataclass(frozen=True)
class Server:
    """A running deployment."""

    host: str
    http_port: int
    grpc_port: int
    metrics_port: int
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def http(self) -> str:
        return f"{self.host}:{self.http_port}"

    @property
    def grpc(self) -> str:
        return f"{self.host}:{self.grpc_port}"

    def url(self, path: str) -> str:
        return f"http://{self.http}{path}"

    def metric(self, family: str, **labels: str) -> float:
        """One value at the metrics port."""
        with urllib.request.urlopen(f"http://{self.host}:{self.metrics_port}/metrics", timeout=60) as reply:
            text = reply.read().decode()
        for line in text.splitlines():
            if line.startswith(family + "{") and all(f'{key}="{value}"' in line for key, value in labels.items()):
                return float(re.split(r"\s+", line)[-1])
        raise AssertionError(f"no metric {family} with {labels}")

    @property
    def num_used_blocks(self) -> int:
        return int(self.metric("nv_trt_llm_kv_cache_block_metrics", kv_cache_block_type="used"))

    @property
    def num_steps(self) -> int:
        return int(self.metric("nv_trt_llm_general_metrics", general_type="iteration_counter"))

    @property
    def num_active(self) -> int:
        return int(self.metric("nv_trt_llm_request_metrics", request_type="active"))


@contextmanager
def serve(repository: Path, log: Path, *options: str, python: str | None = None) -> Iterator[Server]:
    """Yield a server of this repository, ready; stop it at the end, also when the test fails or this process dies.

    `python` is that of the installation of Trident that serves; another one than this is given no option that is new.
    """
    # Nobody balances load here, and a test that ends would wait for the delay that containers have.
    at_once = ("--drain-delay", "0") if python is None else ()
    http_port, grpc_port, metrics_port = free_ports(3)
    command = [
        *(python or sys.executable, "-m", "trident_tools.main", "serve", "--repository", str(repository)),
        *("--host", "127.0.0.1", "--http-port", str(http_port), "--grpc-port", str(grpc_port)),
        *("--metrics-port", str(metrics_port), "--verbose", *at_once),
        *(*without_gateway(options), *options),
    ]
    with log.open("wb") as output:
        process = subprocess.Popen(tied(command), stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
    server = Server("127.0.0.1", http_port, grpc_port, metrics_port, process, log)
    try:
        wait_ready(server)
        yield server
    finally:
        stop(process)


def wait_ready(server: Started) -> None:
    """Wait until Triton says that it is ready; fail with the end of its log when it has ended or takes too long."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and server.process.poll() is None:
        try:
            with urllib.request.urlopen(server.url("/v2/health/ready"), timeout=10):
                return
        except OSError:
            time.sleep(0.1)
    raise AssertionError(f"the server did not become ready:\n{server.log.read_text(errors='replace')[-4000:]}")


def stop(process: subprocess.Popen[bytes]) -> None:
    """Stop a server, and kill all of it when that takes too long."""
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(STOP_SECONDS)
    finally:  # also when this process is interrupted while it waits
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def until(condition: object, seconds: float, what: str) -> None:
    """Wait for something that has to come about."""
    deadline = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.05)


def get(server: Server, path: str) -> int:
    """GET: the status."""
    try:
        with urllib.request.urlopen(server.url(path), timeout=60) as reply:
            status: int = reply.status
    except urllib.error.HTTPError as error:
        return error.code
    return status


def post(server: Server, path: str, payload: object) -> tuple[int, str]:
    """POST JSON (or raw bytes): the status and the body, whatever the status is."""
    data = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
    request = urllib.request.Request(server.url(path), data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as reply:
            return reply.status, reply.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
