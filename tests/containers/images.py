"""The project's images, and bases for them that come from no registry.

Owns what the bases hold: Debian by debootstrap, which is kept in .packages, and on it the tritonserver of the wheel in
the place where Triton's container has it. Never a line of docker/Dockerfile: that is what is tested.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.containers.daemon import Docker
from tests.programs import find

ROOT = Path(__file__).parents[2]
_KEPT = ROOT / ".packages" / "containers"
_SUITE = "bookworm"
#: Its Python is 3.11. Redis and HAProxy stand in for their own images.
_PACKAGES = ("ca-certificates", "libpython3.11", "python3", "python3-pip", "redis-server", "haproxy")
_BUILD_LIMIT_S = 900.0
_CERTIFICATES = "/run/secrets/certificates"


@dataclass(frozen=True)
class Images:
    """The names of the images.

    Args:
        base: Debian with Python, the base of `gateway`.
        serve: the target of this name.
        gateway: the target of this name.
        peers: what has `redis-server` and `haproxy`.
        prometheus: it, as its own image calls it; None where the machine has none.
    """

    base: str
    serve: str
    gateway: str
    peers: str
    prometheus: str | None


def make_images(docker: Docker, folder: Path) -> Images:
    """Build all images, the project's two beside each other; an image of the same content is made once."""
    base = _debian(docker, folder)
    triton = _triton(docker, base, folder / "triton")
    peers, prometheus = _peers(docker, base, folder / "peers")
    with ThreadPoolExecutor() as pool:
        gateway = pool.submit(build_image, docker, "gateway", base, triton, folder / "gateway")
        serve = pool.submit(build_image, docker, "serve", base, triton, folder / "serve")
        return Images(base, serve.result(), gateway.result(), peers, prometheus)


def build_image(docker: Docker, target: str, base: str, triton: str, folder: Path, *options: str) -> str:
    """Build one target of docker/Dockerfile as docs/images.md says behind a mirror; return its name.

    Args:
        docker: where to.
        target: serve or gateway.
        base: for GATEWAY_BASE.
        triton: for BASE.
        folder: a new one, for pip's configuration.
        options: further ones.
    """
    folder.mkdir()
    tag = f"trident-test-{target}:tested"
    docker(
        "build", "--network", "host", "--file", str(ROOT / "docker" / "Dockerfile"), "--target", target,
        "--build-arg", f"BASE={triton}", "--build-arg", f"GATEWAY_BASE={base}", "--tag", tag, *_secrets(folder),
        *options, str(ROOT),
        timeout_s=_BUILD_LIMIT_S,
    )  # fmt: skip
    return tag


def _debian(docker: Docker, folder: Path) -> str:
    """Return a minimal Debian as an image."""
    program = find("debootstrap")
    name = hashlib.sha256(" ".join((_SUITE, *_PACKAGES)).encode()).hexdigest()[:12]
    tag = f"trident-test-base:{name}"
    if docker.has_image(tag):
        return tag
    archive = _KEPT / f"debian-{name}.tar"
    if not archive.exists():
        if program is None or os.geteuid():
            pytest.skip("debootstrap makes the base of the images: as root, with Debian's debootstrap")
        _KEPT.mkdir(parents=True, exist_ok=True)
        root, downloads = folder / "debian", folder / "downloads"
        downloads.mkdir()
        command = [
            program, "--variant=minbase", f"--include={','.join(_PACKAGES)}", f"--cache-dir={downloads}", _SUITE,
            str(root),
        ]  # fmt: skip
        for is_last in (False, False, True):  # a download may fail, and those that did not are kept
            shutil.rmtree(root, ignore_errors=True)
            result = subprocess.run(command, capture_output=True, text=True, timeout=_BUILD_LIMIT_S, check=False)
            if result.returncode == 0:
                break
            assert not is_last, result.stdout[-3000:] + result.stderr[-3000:]
        for left in (*root.glob("var/cache/apt/archives/*.deb"), *root.glob("var/lib/apt/lists/*_*")):
            left.unlink()
        unfinished = archive.with_suffix(f".{os.getpid()}")
        subprocess.run(["tar", "--create", "--file", unfinished, "--directory", root, "."], check=True)
        unfinished.rename(archive)
        shutil.rmtree(root)
    docker("import", str(archive), tag, timeout_s=_BUILD_LIMIT_S)
    return tag


def _triton(docker: Docker, base: str, folder: Path) -> str:
    """Return the base with tritonserver where Triton's container has it, and its user of the id 1000."""
    spec = importlib.util.find_spec("pytriton")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("the wheel of tritonserver is missing: make test installs it")
    package = Path(next(iter(spec.submodule_search_locations)))
    server = folder / "tritonserver"
    shutil.copytree(package / "tritonserver" / "bin", server / "bin")
    python = server / "backends" / "python"
    shutil.copytree(package / "tritonserver" / "backends" / "python", python)
    shutil.copy(package / "tritonserver" / "python_backend_stubs" / "3.11" / "triton_python_backend_stub", python)
    shutil.copytree(package.parent / "nvidia_pytriton.libs", server / "lib")
    return _build(
        docker,
        folder,
        "trident-test-tritonserver:tested",
        f"FROM {base}",
        "RUN useradd --uid 1000 --user-group --no-create-home triton-server",
        "COPY tritonserver /opt/tritonserver",
        "ENV PATH=/opt/tritonserver/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "ENV LD_LIBRARY_PATH=/opt/tritonserver/lib",
    )


def _peers(docker: Docker, base: str, folder: Path) -> tuple[str, str | None]:
    """Return the images that stand in for those of Redis and HAProxy, and for that of Prometheus."""
    folder.mkdir()
    owned = "RUN mkdir -p /data /prometheus && chown 999:1000 /data && chown 65534:65534 /prometheus"
    peers = _build(docker, folder, "trident-test-peers:tested", f"FROM {base}", owned)
    program = find("prometheus")
    if program is None:
        return peers, None
    shutil.copy(program, folder / "prometheus")
    return peers, _build(
        docker,
        folder,
        "trident-test-prometheus:tested",
        f"FROM {peers}",
        "COPY prometheus /bin/prometheus",
        'ENTRYPOINT ["/bin/prometheus"]',
    )


def _build(docker: Docker, folder: Path, tag: str, *lines: str) -> str:
    file = folder / "Dockerfile"
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    docker("build", "--network", "none", "--file", str(file), "--tag", tag, str(folder), timeout_s=_BUILD_LIMIT_S)
    return tag


def _secrets(folder: Path) -> list[str]:
    """Return options that give a build what this machine's pip needs to reach an index, and that no image keeps."""
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=False
    ).stdout
    said = dict(re.findall(r"^(?:global|:env:)\.([a-z-]+)='(.*)'$", listed, re.MULTILINE))
    lines = ["[global]"]
    options = []
    certificates = said.get("cert") or os.environ.get("SSL_CERT_FILE")
    if certificates:
        lines.append(f"cert = {_CERTIFICATES}")
        options += ["--secret", f"id=certificates,src={certificates}"]
    for name in ("index-url", "extra-index-url", "proxy", "trusted-host"):
        places = [place for place in said.get(name, "").split() if not place.startswith("file:")]
        if places:
            lines.append(f"{name} = {' '.join(places)}")
    configuration = folder / "pip.conf"
    configuration.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return [*options, "--secret", f"id=pip,src={configuration}"]
