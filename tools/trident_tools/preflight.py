"""What must be true before a server is started.

Owns the checks of the repository and of the ports, and their messages. Never starts anything.
"""

from __future__ import annotations

import socket
from pathlib import Path

from trident_backend.engine.artifact import Manifest, read_manifest
from trident_ensemble import layout
from trident_ensemble.errors import ServerError
from trident_tools.triton_server import Listen


def check_repository(repository: Path) -> Manifest:
    """The manifest of the engine that would be served.

    Raises:
        ArtifactError: the engine is missing or damaged.
        ServerError: the repository is not complete.
    """
    if not repository.is_dir():
        raise ServerError(f"--repository {repository}: no such folder; make one with `trident build`")
    missing = [model for model in layout.MODELS if not (repository / model / layout.CONFIG_FILE).is_file()]
    if missing:
        raise ServerError(
            f"--repository {repository}: no {layout.CONFIG_FILE} for {', '.join(missing)}; "
            f"run `trident build CHECKPOINT --repository {repository}` first"
        )
    return read_manifest(layout.newest_version(repository / layout.CORE))


def check_ports(listen: Listen) -> None:
    """Refuse ports that are out of range, the same, or taken, before anything is started.

    Raises:
        ServerError: names the option and the port.
    """
    ports = {"http": listen.http_port, "grpc": listen.grpc_port, "metrics": listen.metrics_port}
    for name, port in ports.items():
        if not 1 <= port <= 65535:
            raise ServerError(f"--{name}-port {port}: must be between 1 and 65535")
    if len(set(ports.values())) != len(ports):
        raise ServerError(
            f"--http-port, --grpc-port and --metrics-port must differ: {', '.join(map(str, ports.values()))}"
        )
    for name, port in ports.items():
        family = socket.AF_INET6 if ":" in listen.host else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((listen.host, port))
            except OSError as error:
                raise ServerError(
                    f"--{name}-port {port}: cannot listen on {listen.host}: {error.strerror or error}; choose another"
                ) from error
