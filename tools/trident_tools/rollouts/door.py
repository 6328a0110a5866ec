"""A way to speak OpenAI's API with one server alone.

Owns the gateway that is started for it on this machine's own address, and its end. Never shows it to anybody else, and
never asks anything through it.
"""

from __future__ import annotations

import os
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from trident_ensemble.contract.errors import ServerError
from trident_ensemble.contract.routes import RouteServer
from trident_tools.rollouts.api_client import ApiClient
from trident_tools.server.server_process import ServerProcess

_POLL_S = 0.1
_STOP_S = 5.0
_TAIL_BYTES = 4096


@dataclass(frozen=True)
class Door:
    """An address of OpenAI's API.

    Args:
        name: for messages: the URL that the user gave.
        client: asks there.
    """

    name: str
    client: ApiClient


@contextmanager
def door_of_address(url: str, key: str | None, patience_s: float, check: Callable[[], None]) -> Iterator[Door]:
    """Wait for a gateway that is there.

    Args:
        url: of its public port.
        key: for it; None for none.
        patience_s: for which it may take until it is ready.
        check: called while it is waited for; what it raises ends the wait.

    Raises:
        ServerError: it does not become ready in time.
    """
    door = Door(url, ApiClient(url, key))
    deadline = time.monotonic() + patience_s
    while not door.client.is_ready():
        check()
        if time.monotonic() > deadline:
            raise ServerError(f"{url}: no gateway with a model is ready there after {patience_s:g} s")
        time.sleep(_POLL_S)
    yield door


@contextmanager
def door_of_server(server: RouteServer, patience_s: float, check: Callable[[], None]) -> Iterator[Door]:
    """Start a gateway in front of one server, and end it after the block.

    Args:
        server: a tritonserver.
        patience_s: for which it may take until it is ready.
        check: called while it is waited for; what it raises ends the wait.

    Raises:
        ServerError: it does not become ready in time.
    """
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    command = [
        *(sys.executable, "-m", "trident_tools.main", "gateway", "--quiet"),
        *(f"--server={server.url}", f"--metrics-url={server.metrics_url}"),
        *("--host=127.0.0.1", f"--port={port}", "--private-port=0", "--drain-delay=0", "--drain-timeout=1"),
    ]
    with tempfile.TemporaryFile() as log:
        process = ServerProcess(command, os.environ, log)
        try:
            door = Door(server.url, ApiClient(f"http://127.0.0.1:{port}"))
            deadline = time.monotonic() + patience_s
            while not door.client.is_ready():
                check()
                if process.exit_status() is not None:
                    log.seek(max(0, log.seek(0, 2) - _TAIL_BYTES))
                    said = log.read().decode("utf-8", "replace").strip()
                    raise ServerError(f"the gateway in front of {server.url} ended: {said or 'without a word'}")
                if time.monotonic() > deadline:
                    raise ServerError(f"{server.url}: no model of it is ready after {patience_s:g} s")
                time.sleep(_POLL_S)
            yield door
        finally:
            process.ask_to_stop()
            process.wait(_STOP_S)
            process.kill()
