"""Gateways as processes, with two keys or with none.

Owns the command line of `trident gateway` in these tests. Never starts what is behind it.
"""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.child_processes import tied
from tests.ports import free_ports
from trident_gateway.settings import ServerAddress

_SECONDS = 60


@dataclass(frozen=True)
class RunningGateway:
    """A gateway that serves.

    Args:
        port: the public one.
        private_port: for metrics and drain.
        process: itself.
        key: of the tenant `alice`, without limits.
        spent_key: allows one request a minute.
        log: one JSON line a request.
        output: what it printed.
    """

    port: int
    private_port: int
    process: subprocess.Popen[bytes]
    key: str
    spent_key: str
    log: Path
    output: Path

    @property
    def url(self) -> str:
        """The base of the API."""
        return f"http://127.0.0.1:{self.port}/v1"

    def metrics(self) -> str:
        """The page of its metrics."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.private_port}/metrics", timeout=_SECONDS) as reply:
            text: str = reply.read().decode()
        return text

    def metric(self, name: str) -> float:
        """The sum of a metric over its labels; 0 where it has no sample."""
        found = re.findall(rf"^{name}(?:{{[^}}]*}})? (\S+)$", self.metrics(), re.MULTILINE)
        return sum(map(float, found))


def make_key(file: Path, tenant: str, *options: str) -> str:
    """Make a key with the command; return it."""
    command = [*_TRIDENT, "keys", "create", "--keys", str(file), "--tenant", tenant, *options]
    printed = subprocess.run(command, check=True, capture_output=True, text=True, timeout=_SECONDS).stdout
    found = re.search(r"sk-trident-\S+", printed)
    assert found, printed
    return found[0]


_TRIDENT = (sys.executable, "-m", "trident_tools.main")


@contextmanager
def gateway(
    folder: Path, servers: Sequence[ServerAddress], *options: str, has_keys: bool = True
) -> Iterator[RunningGateway]:
    """Yield a gateway before these servers, once it is ready; stop it at the end."""
    folder.mkdir(parents=True, exist_ok=True)
    keys, log, output = folder / "keys.json", folder / "requests.log", folder / "output"
    key = spent_key = "none"
    if has_keys:
        key, spent_key = make_key(keys, "alice"), make_key(keys, "bob", "--rpm", "1")
        options = ("--keys", str(keys), *options)
    port, private_port = free_ports(2)
    command = [
        *_TRIDENT, "gateway", "--port", str(port), "--private-port", str(private_port),
        "--log-file", str(log), "--drain-delay", "0", "--drain-timeout", "10",
        *(word for server in servers for word in ("--server", server.url)),
        *(word for server in servers for word in ("--metrics-url", server.metrics_url)), *options,
    ]  # fmt: skip
    with output.open("wb") as sink:
        process = subprocess.Popen(tied(command), stdout=sink, stderr=subprocess.STDOUT)
    running = RunningGateway(port, private_port, process, key, spent_key, log, output)
    try:
        _wait_ready(running)
        yield running
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(_SECONDS)
        finally:
            process.kill()


def _wait_ready(running: RunningGateway) -> None:
    deadline = time.monotonic() + _SECONDS
    while time.monotonic() < deadline and running.process.poll() is None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{running.private_port}/ready", timeout=10):
                return
        except OSError:
            time.sleep(0.05)
    raise AssertionError(f"the gateway did not become ready:\n{running.output.read_text(errors='replace')[-4000:]}")
