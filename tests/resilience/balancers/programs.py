"""The balancers that stand before gateways, as real processes with the configurations that are advised.

Owns their start and their end. Never changes a configuration beyond ports and folders.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.child_processes import tied
from tests.gateway.http.room import LIMIT_S
from tests.ports import free_ports
from tests.programs import find

_HERE = Path(__file__).parent


@dataclass(frozen=True)
class Balancer:
    """One kind of balancer.

    Args:
        program: the name of the executable, and of Debian's package.
        template: the file with its configuration.
        arguments: of the program, by the path of the configuration.
        settings: that a test may change.
    """

    program: str
    template: str
    arguments: Callable[[Path], list[str]]
    settings: Mapping[str, str]


HAPROXY = Balancer("haproxy", "haproxy.cfg", lambda path: ["-db", "-f", str(path)], {})
#: A refusal with 503 has not begun a request, and neither has a connection that was refused.
NGINX = Balancer(
    "nginx", "nginx.conf", lambda path: ["-c", str(path)], {"NEXT": "error timeout http_503 non_idempotent"}
)
CADDY = Balancer("caddy", "Caddyfile", lambda path: ["run", "--adapter", "caddyfile", "--config", str(path)], {})


@asynccontextmanager
async def balancing(balancer: Balancer, gateways: list[tuple[int, int]], **settings: str) -> AsyncIterator[int]:
    """Start a balancer, and yield its port once it listens.

    Args:
        balancer: its kind.
        gateways: public and private port of two.
        settings: in the places of the usual ones.
    """
    program = find(balancer.program)
    assert program is not None, f"{balancer.program} is missing"
    (port,) = free_ports(1)
    folder = Path(tempfile.mkdtemp(prefix=f"{balancer.program}-"))
    text = (_HERE / balancer.template).read_text(encoding="utf-8")
    values = {**balancer.settings, **settings, "PORT": str(port), "FOLDER": str(folder)}
    for name, (public, private) in zip("AB", gateways, strict=True):
        values |= {f"{name}_PORT": str(public), f"{name}_PRIVATE": str(private)}
    for name, value in values.items():
        text = text.replace(f"@{name}@", value)
    path = folder / balancer.template
    path.write_text(text, encoding="utf-8")
    log = (folder / "log").open("wb")
    process = await asyncio.create_subprocess_exec(
        *tied([program, *balancer.arguments(path)]),
        stdout=log,
        stderr=log,
        env={**os.environ, "HOME": str(folder), "XDG_DATA_HOME": str(folder), "XDG_CONFIG_HOME": str(folder)},
    )
    try:
        await asyncio.wait_for(_listening(process, port, folder / "log"), LIMIT_S)
        yield port
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
        log.close()
        shutil.rmtree(folder, ignore_errors=True)


async def _listening(process: asyncio.subprocess.Process, port: int, log: Path) -> None:
    while True:
        assert process.returncode is None, log.read_text(encoding="utf-8")
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            await asyncio.sleep(0.02)
        else:
            writer.close()
            return
