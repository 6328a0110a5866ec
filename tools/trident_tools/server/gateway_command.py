"""The gateway as a command that `trident serve` starts.

Owns what `trident serve` knows of `trident gateway`: what it needs installed, its command line, its readiness, and
which lines of a log are its complaints. Never imports the gateway, and never starts it.
"""

from __future__ import annotations

import http.client
import importlib.util
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from trident_tools.server.triton_server import Listen, local_address

#: What the extra `gateway` of this package installs, by the names under which Python imports it.
NEEDED_MODULES = ("uvicorn", "uvloop", "httptools", "starlette", "msgspec", "redis", "jwt", "prometheus_client")
#: The status with which a gateway ends that had to cut requests.
EXIT_CUT = 3
_TIMEOUT_S = 0.5
_COMPLAINT = b"trident gateway: "
_READ_BYTES = 1 << 16


@dataclass(frozen=True)
class GatewayListen:
    """The address and the ports of the gateway.

    Args:
        host: address of the port for clients.
        port: for clients.
        private_port: for probes and metrics, on this machine's own address.
    """

    host: str
    port: int
    private_port: int


def missing_module() -> str | None:
    """Return the first module that the gateway needs and this Python lacks; None if it lacks none."""
    return next((name for name in NEEDED_MODULES if importlib.util.find_spec(name) is None), None)


def gateway_command(
    listen: GatewayListen,
    server: Listen,
    options: Sequence[str],
    *,
    drain_delay_s: float,
    drain_timeout_s: float,
    logs_requests: bool,
) -> list[str]:
    """Return the command line of the gateway of one server.

    Args:
        listen: where the gateway listens.
        server: where tritonserver listens.
        options: further options of `trident gateway`; those that this function sets come after them and win.
        drain_delay_s: seconds for which it serves everything once it is asked to stop.
        drain_timeout_s: seconds that its requests get after that.
        logs_requests: whether its output has a line for each request. A file among `options` has them in any case.
    """
    host = local_address(server.host)
    host = f"[{host}]" if ":" in host else host
    return [
        *(sys.executable, "-m", "trident_tools.main", "gateway"),
        *options,
        *([] if logs_requests else ["--quiet"]),
        f"--server=http://{host}:{server.http_port}",
        f"--metrics-url=http://{host}:{server.metrics_port}",
        f"--host={listen.host}",
        f"--port={listen.port}",
        f"--private-port={listen.private_port}",
        f"--drain-delay={drain_delay_s:g}",
        f"--drain-timeout={drain_timeout_s:g}",
    ]


def is_gateway_ready(listen: GatewayListen) -> bool:
    """Return whether the gateway has found a model and takes requests."""
    connection = http.client.HTTPConnection("127.0.0.1", listen.private_port, timeout=_TIMEOUT_S)
    try:
        connection.request("GET", "/ready")
        return connection.getresponse().status == http.client.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def last_complaint(log: Path, begin: int) -> str:
    """Return the last complaint of a gateway in a log that others write to as well; empty if there is none.

    Args:
        log: the file.
        begin: its size when the gateway was started.
    """
    try:
        with log.open("rb") as file:
            end = file.seek(0, 2)
            file.seek(max(begin, end - _READ_BYTES))
            lines = [line for line in file.read().splitlines() if line.startswith(_COMPLAINT)]
    except OSError:
        return ""
    return lines[-1].removeprefix(_COMPLAINT).decode("utf-8", "replace") if lines else ""
