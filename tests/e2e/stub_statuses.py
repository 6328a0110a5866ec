"""A real tritonserver whose models' processes tell how they ended.

Triton does not say. So in the stub's place stands a script that runs the stub and writes down its exit status.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.child_processes import tied
from tests.e2e.server import STOP_SECONDS, wait_ready
from tests.ports import free_ports
from trident_tools.server.triton_server import Listen, compose_backends, find_server, server_command, server_environment

_SCRIPT = """#!/bin/sh
"{stub}" "$@"
echo "$1 $?" >> "{record}"
"""


@dataclass(frozen=True)
class WatchedServer:
    """A running tritonserver."""

    http_port: int
    metrics_port: int
    process: subprocess.Popen[bytes]
    record: Path
    log: Path

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.http_port}{path}"

    def statuses(self) -> list[tuple[str, int]]:
        """Of each process that has ended: its model's file, and its exit status; 139 is a segmentation fault."""
        lines = self.record.read_text(encoding="utf-8").splitlines() if self.record.exists() else []
        ends = [line.split() for line in lines]
        # Triton also starts stubs without a model, to find out what they can do.
        return [(Path(words[0]).parts[-3], int(words[1])) for words in ends if len(words) == 2]


@contextmanager
def watched_server(repository: Path, folder: Path, *options: str) -> Iterator[WatchedServer]:
    """A server of this repository, ready; it is asked to stop at the end, and has ended then."""
    server = find_server()
    backends, record, log = folder / "backends", folder / "statuses", folder / "log"
    backends.mkdir(parents=True)
    compose_backends(server, backends)
    stub = backends / "python" / "triton_python_backend_stub"
    real = stub.with_name("real_stub")
    shutil.move(stub, real)
    stub.write_text(_SCRIPT.format(stub=real, record=record), encoding="utf-8")
    stub.chmod(0o755)
    ports = free_ports(3)
    command = server_command(server, repository, backends, Listen("127.0.0.1", *ports), 5)
    with log.open("wb") as output:
        process = subprocess.Popen(
            tied([*command, *options]),
            env=server_environment(server, os.environ),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    running = WatchedServer(ports[0], ports[2], process, record, log)
    try:
        wait_ready(running)
        yield running
        process.terminate()
        process.wait(STOP_SECONDS)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
