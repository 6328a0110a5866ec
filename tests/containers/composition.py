"""docker/compose.yaml brought up with the images of the tests.

Owns the variables and the calls. Never a service: the file is what is tested.
"""

from __future__ import annotations

import secrets
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.containers.daemon import Docker, compose_command
from tests.containers.images import ROOT, Images
from tests.ports import free_ports

FILE = ROOT / "docker" / "compose.yaml"
_UP_LIMIT_S = 300.0


@dataclass(frozen=True)
class Composition:
    """A project of Docker Compose.

    Args:
        docker: its daemon.
        project: its name.
        variables: of compose.yaml.
        profiles: those that are on.
        key: of the gateway.
        keys: the file that holds it.
    """

    docker: Docker
    project: str
    variables: dict[str, str]
    profiles: tuple[str, ...]
    key: str
    keys: Path

    def __call__(self, *words: str, timeout_s: float = _UP_LIMIT_S) -> str:
        """Run a command of Docker Compose and return what it prints; fail if it does."""
        compose = compose_command()
        assert compose is not None
        profiles = [word for profile in self.profiles for word in ("--profile", profile)]
        result = subprocess.run(
            [*compose, "--file", str(FILE), *profiles, *words],
            env={**self.docker.environment, **self.variables, "COMPOSE_PROJECT_NAME": self.project},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=timeout_s,
            check=False,
            text=True,
        )
        assert result.returncode == 0, result.stdout[-6000:]
        return result.stdout

    def container(self, service: str) -> str:
        """Return the id of the container of a service, also of one that has ended."""
        label = f"label=com.docker.compose.project={self.project}"
        return self.docker(
            "ps", "--all", "--quiet", "--filter", label, "--filter", f"label=com.docker.compose.service={service}"
        )

    def url(self, port: str = "TRIDENT_PORT") -> str:
        """Return where a service is published, by the variable of its port."""
        return f"http://127.0.0.1:{self.variables[port]}"

    def python(self, service: str, program: str) -> str:
        """Run a program in the container of a service."""
        return self.docker("exec", self.container(service), "python3", "-c", program)


@contextmanager
def composed(
    docker: Docker, images: Images, models: Path, folder: Path, *profiles: str, **variables: str
) -> Iterator[Composition]:
    """Yield the composition after `up`; take it down at the end, with its volumes."""
    ports = free_ports(2)
    keys = folder / "keys.json"
    key = new_key(keys)
    folder.chmod(0o755)
    composition = Composition(
        docker,
        f"trident-test-{secrets.token_hex(4)}",
        {
            "TRIDENT_SERVE_IMAGE": images.serve,
            "TRIDENT_GATEWAY_IMAGE": images.gateway,
            "REDIS_IMAGE": images.peers,
            "HAPROXY_IMAGE": images.peers,
            "PROMETHEUS_IMAGE": images.prometheus or "",
            "TRIDENT_MODELS": str(models),
            "TRIDENT_SECRETS": str(folder),
            "TRIDENT_SERVE_MEMORY": "3g",
            "TRIDENT_PORT": str(ports[0]),
            "HAPROXY_PORT": str(ports[1]),
            **variables,
        },
        profiles,
        key,
        keys,
    )
    try:
        try:
            composition("up", "--detach", "--no-build")
        except AssertionError as error:
            raise AssertionError(f"{error}\n{composition('logs', '--tail', '40')[-6000:]}") from None
        yield composition
    finally:
        composition("down", "--volumes", "--timeout", "10")


def new_key(keys: Path) -> str:
    """Add a key with a limit to a file that the images' own user can read; return it."""
    command = [
        sys.executable, "-m", "trident_tools.main", "keys", "create", "--keys", str(keys), "--tenant", "tested",
        "--day-tokens", "1000000000",
    ]  # fmt: skip
    key = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    keys.chmod(0o644)
    return key
