"""A Docker daemon for tests: one that is there, or one of their own.

Owns how it is found, started and ended, and how its command line is called. Never pulls an image.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.child_processes import tied
from tests.programs import find

LIMIT_S = 60.0
_SOCKET = Path("/var/run/docker.sock")


class DockerError(Exception):
    """The daemon refused something."""


@dataclass(frozen=True)
class Docker:
    """The command line of one daemon.

    Args:
        host: the daemon's address, as DOCKER_HOST has it.
        client: the program, which can build with BuildKit.
    """

    host: str
    client: str

    @property
    def environment(self) -> dict[str, str]:
        """What a program needs to find this daemon, and to build with BuildKit."""
        return {**os.environ, "DOCKER_HOST": self.host, "DOCKER_BUILDKIT": "1", "BUILDKIT_PROGRESS": "plain"}

    def __call__(self, *words: str, timeout_s: float = LIMIT_S, is_quiet: bool = False) -> str:
        """Run a command, such as `docker("ps")`, and return what it prints.

        Args:
            words: of the command.
            timeout_s: seconds until it is given up.
            is_quiet: let it fail without an error, with what it printed until then.

        Raises:
            DockerError: it failed; has what it said.
        """
        result = subprocess.run(
            [self.client, *words],
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=timeout_s,
            check=False,
            text=True,
        )
        if result.returncode and not is_quiet:
            raise DockerError(f"docker {' '.join(words)}: status {result.returncode}\n{result.stdout[-6000:]}")
        return result.stdout.strip()

    def has_image(self, tag: str) -> bool:
        """Return whether there is an image of this name."""
        return self("image", "ls", "--quiet", tag) != ""

    def inspect(self, name: str) -> dict[str, Any]:
        """Return what the daemon knows of a container or an image."""
        (found,) = json.loads(self("inspect", name))
        return dict(found)


def reachable_daemon() -> Docker | None:
    """Return the daemon of DOCKER_HOST or of the default socket, if it answers."""
    host = os.environ.get("DOCKER_HOST") or f"unix://{_SOCKET}"
    client = _client()
    if client is None or (not os.environ.get("DOCKER_HOST") and not _SOCKET.exists()):
        return None
    docker = Docker(host, client)
    try:
        docker("version")
    except (DockerError, subprocess.TimeoutExpired):
        return None
    return docker


def why_there_is_none() -> str | None:
    """Return why no daemon can be started here; None if one can."""
    if os.geteuid():
        return "no Docker daemon answers, and only root can start one"
    if find("dockerd") is None or _client() is None:
        return "dockerd is missing: it comes with Debian's docker.io"
    return None


@contextmanager
def private_daemon(folder: Path) -> Iterator[Docker]:
    """Yield a daemon whose data lies in this folder; end it and remove its data at the end.

    It changes nothing of the machine's firewall: containers reach each other over bridges of their own, and builds use
    the machine's network.
    """
    client, program = _client(), find("dockerd")
    assert client is not None
    assert program is not None
    socket = folder / "docker.sock"
    docker = Docker(f"unix://{socket}", client)
    command = [
        program, "--data-root", str(folder / "data"), "--exec-root", str(folder / "exec"), "--host", docker.host,
        "--pidfile", str(folder / "pid"), "--bridge", "none", "--iptables=false", "--ip6tables=false",
        "--ip-masq=false", "--shutdown-timeout", "5",
    ]  # fmt: skip
    log = folder / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(tied(command), stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        deadline = time.monotonic() + LIMIT_S
        while not _answers(docker):
            if process.poll() is not None or time.monotonic() > deadline:
                said = log.read_text(errors="replace").splitlines()
                pytest.skip(f"dockerd does not start here: {said[-1] if said else 'it says nothing'}")
            time.sleep(0.1)
        yield docker
        containers = docker("ps", "--all", "--quiet").split()
        if containers:
            docker("rm", "--force", "--volumes", *containers)
        docker("network", "prune", "--force")
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(LIMIT_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        for left in sorted(_mounts_below(folder), reverse=True):
            subprocess.run(["umount", "--lazy", left], check=False)
        # Tens of thousands of files, for which nobody need wait.
        subprocess.Popen(["rm", "-r", "-f", folder / "data", folder / "exec"], start_new_session=True)


def compose_command() -> list[str] | None:
    """Return the words of Docker Compose, the newer one where there are two; None if there is none."""
    client = shutil.which("docker")
    if client and subprocess.run([client, "compose", "version"], capture_output=True, check=False).returncode == 0:
        return [client, "compose"]
    program = find("docker-compose")
    return [program] if program else None


def _client() -> str | None:
    """Return a client that builds with BuildKit: of Docker 20.10 to 22, or a later one with its plugin."""
    for folder in (*os.get_exec_path(), "/usr/bin"):
        client = Path(folder) / "docker"
        if client.is_file() and _builds([str(client)]):
            return str(client)
    return None


def _builds(client: Sequence[str]) -> bool:
    environment = {**os.environ, "DOCKER_BUILDKIT": "1"}
    result = subprocess.run([*client, "build", "--help"], env=environment, capture_output=True, text=True, check=False)
    return result.returncode == 0 and "--secret" in result.stdout


def _answers(docker: Docker) -> bool:
    try:
        docker("version")
    except (DockerError, subprocess.TimeoutExpired):
        return False
    return True


def _mounts_below(folder: Path) -> list[str]:
    mounts = Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines()
    return [mount.split()[1] for mount in mounts if mount.split()[1].startswith(f"{folder}/")]
