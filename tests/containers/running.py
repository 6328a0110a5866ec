"""Containers of a test, and what lies in an image.

Owns how a container is started, waited for and removed. Never says what is in it.
"""

from __future__ import annotations

import io
import subprocess
import tarfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.containers.daemon import LIMIT_S, Docker

#: What docs/images.md recommends for every container, and Kubernetes' profile `restricted` asks for.
LOCKED_DOWN = ("--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges")


def until(is_so: Callable[[], bool], what: str, limit_s: float = LIMIT_S) -> None:
    """Wait for something that has to come about."""
    deadline = time.monotonic() + limit_s
    while not is_so():
        assert time.monotonic() < deadline, f"not within {limit_s:g} s: {what}"
        time.sleep(0.1)


@contextmanager
def container(docker: Docker, image: str, *words: str, options: tuple[str, ...] = ()) -> Iterator[str]:
    """Yield the id of a container that has been started, without waiting for it; remove it at the end.

    Args:
        docker: where to.
        image: of the container.
        words: its command, behind the image's entry point.
        options: of `docker run`.
    """
    name = docker("run", "--detach", *options, image, *words)
    try:
        yield name
    finally:
        docker("rm", "--force", "--volumes", name)


def wait_healthy(docker: Docker, name: str, limit_s: float = 120.0) -> None:
    """Wait until the image's own HEALTHCHECK says so; fail with the container's output when it has ended."""

    def is_healthy() -> bool:
        state = docker.inspect(name)["State"]
        assert state["Running"], docker("logs", "--tail", "60", name)
        return bool(state["Health"]["Status"] == "healthy")

    until(is_healthy, "healthy", limit_s)


def files(docker: Docker, image: str, folder: str = "") -> Iterator[tuple[tarfile.TarInfo, bytes]]:
    """Yield every entry of an image, or of one of its folders, with the content of the small files.

    Args:
        docker: where the image is.
        image: its name.
        folder: path in the image; all of it if it is empty.
    """
    name = docker("create", image)
    words = ["cp", f"{name}:{folder}", "-"] if folder else ["export", name]
    try:
        with subprocess.Popen(
            [docker.client, *words], env=docker.environment, stdout=subprocess.PIPE, bufsize=1 << 20
        ) as process:
            assert process.stdout is not None
            with tarfile.open(fileobj=process.stdout, mode="r|") as archive:
                for entry in archive:
                    is_small = entry.isfile() and entry.size < 1 << 16
                    file = archive.extractfile(entry) if is_small else io.BytesIO()
                    assert file is not None
                    yield entry, file.read()
    finally:
        docker("rm", name)


def readable_by_all(folder: Path) -> Path:
    """Let the images' own user read a folder of this test; return it."""
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return folder
