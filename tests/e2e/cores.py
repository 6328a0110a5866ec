"""Starts tritonserver with the cores of a repository alone: for clients that speak token ids, without the text models.

Owns the command. A deployment with its text models, as users have it, is started by `server.serve`.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.child_processes import tied
from tests.e2e.server import Server, stop, wait_ready
from tests.ports import free_ports
from trident_tools.server.triton_server import Listen, compose_backends, find_server, server_command, server_environment

_HOST, _EXIT_SECONDS = "127.0.0.1", 5


@contextmanager
def serve_cores(repository: Path, cores: Sequence[str], folder: Path) -> Iterator[Server]:
    """Yield a server of these models, ready, with its log and its backends in a folder; stop it at the end."""
    found, log = find_server(), folder / "log"
    http_port, grpc_port, metrics_port = free_ports(3)
    backends = folder / "backends"
    backends.mkdir()
    compose_backends(found, backends)
    command = [
        *server_command(found, repository, backends, Listen(_HOST, http_port, grpc_port, metrics_port), _EXIT_SECONDS),
        "--model-control-mode=explicit",
        *(f"--load-model={core}" for core in cores),
    ]
    environment = server_environment(found, os.environ)
    with log.open("wb") as output:
        process = subprocess.Popen(
            tied(command), env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    server = Server(_HOST, http_port, grpc_port, metrics_port, process, log)
    try:
        wait_ready(server)
        yield server
    finally:
        stop(process)
