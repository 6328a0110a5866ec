"""The image of the gateway: small, locked down, the same wherever it is built, with nothing of the build in it."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import pytest

from tests.containers.daemon import Docker
from tests.containers.images import ROOT, Images, build_image
from tests.containers.running import LOCKED_DOWN, container, files, until

MAX_ABOVE_BASE = 150 << 20
#: Names of programs that no image of ours brings.
BUILDERS = {"gcc", "g++", "cc", "c++", "cpp", "ld", "make", "cmake", "git", "rustc", "cargo"}


def test_gateway_image_is_small_and_adds_one_environment(docker: Docker, images: Images) -> None:
    above = docker.inspect(images.gateway)["Size"] - docker.inspect(images.base)["Size"]
    assert 0 < above < MAX_ABOVE_BASE, f"{above >> 20} MiB above its base"


@pytest.mark.parametrize("target", ["gateway", "serve"])
def test_image_holds_no_compiler_cache_or_key(docker: Docker, images: Images, target: str) -> None:
    image = {"gateway": images.gateway, "serve": images.serve}[target]
    packages = set()
    for entry, content in files(docker, image):
        path = Path(entry.name)
        assert not (path.name in BUILDERS and "bin" in path.parts), path
        assert not {".cache", "pip-cache"} & {*path.parts}, path
        assert path.parts[:1] != ("build",), path
        assert path.name not in ("keys.json", "pip.conf", ".env", ".git", "id_rsa"), path
        assert not (path.parts[:1] == ("run",) and "secrets" in path.parts and entry.size), path
        if path.parts[:2] == ("opt", "trident"):
            assert b"PRIVATE KEY-----\n" not in content, path
            if path.parts[-2:-1] == ("site-packages",):
                packages.add(path.name)
    assert "trident_gateway" in packages
    assert ("numpy" in packages) == (target == "serve")
    assert "pip" not in packages


@pytest.mark.parametrize("target", ["gateway", "serve"])
def test_image_says_what_it_is_and_its_history_tells_no_secret(docker: Docker, images: Images, target: str) -> None:
    image = {"gateway": images.gateway, "serve": images.serve}[target]
    config = docker.inspect(image)["Config"]
    labels = {name.rpartition(".")[2]: value for name, value in config["Labels"].items()}
    (version,) = re.findall(r'^version = "(.*)"$', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    assert (labels["title"], labels["version"], labels["licenses"]) == (f"trident-{target}", version, "Apache-2.0")
    assert {"source", "revision", "description"} <= {*labels}
    assert config["User"] == "1000:1000"
    assert config["Healthcheck"]["Test"][:2] == ["CMD", "python3"]
    told = docker("history", "--no-trunc", "--format", "{{.CreatedBy}}", image) + str(config["Env"])
    assert not re.search(r"(?i)password|token|secret|\.pem|index-url|https?://(?!127\.0\.0\.1|localhost)", told), told


def test_gateway_image_is_the_same_wherever_it_is_built(docker: Docker, images: Images, tmp_path: Path) -> None:
    """To the byte, with nothing reused; only the times of files differ, which the classic builder does not set."""

    def digests() -> dict[str, tuple[int, int, str, str]]:
        found = {}
        for entry, content in files(docker, images.gateway, "/opt/trident"):
            digest = hashlib.sha256(content).hexdigest()
            found[entry.name] = (entry.mode, entry.size, entry.linkname, digest)
        return found

    before = digests()
    build_image(docker, "gateway", images.base, images.base, tmp_path / "again", "--no-cache")
    assert len(before) > 1000
    assert digests() == before


def test_gateway_image_labels_come_from_the_build(docker: Docker, images: Images, tmp_path: Path) -> None:
    told = ("--build-arg", "REVISION=abc123", "--build-arg", "SOURCE=https://example.com/trident")
    labels = docker.inspect(build_image(docker, "gateway", images.base, images.base, tmp_path / "told", *told))
    assert labels["Config"]["Labels"]["org.opencontainers.image.revision"] == "abc123"
    assert labels["Config"]["Labels"]["org.opencontainers.image.source"] == "https://example.com/trident"
    build_image(docker, "gateway", images.base, images.base, tmp_path / "untold")


def test_gateway_image_runs_its_commands_and_says_what_others_lack(
    docker: Docker, images: Images, tmp_path: Path
) -> None:
    tmp_path.chmod(0o777)
    words = ("create", "--keys", "/keys/keys.json", "--tenant", "us")
    shown = docker(
        "run", "--rm", *LOCKED_DOWN, "--network", "none", "--volume", f"{tmp_path}:/keys", "--entrypoint", "trident",
        images.gateway, "keys", *words,
    )  # fmt: skip
    assert "sk-" in shown or "key" in shown.lower()
    assert (tmp_path / "keys.json").stat().st_uid == 1000
    for command in ("build", "serve", "chat", "bench"):
        said = docker(
            "run", "--rm", *LOCKED_DOWN, "--network", "none", "--entrypoint", "trident", images.gateway, command,
            is_quiet=True,
        )  # fmt: skip
        assert re.fullmatch(rf"trident {command}: [\w.]+ is not installed: pip install 'trident-llm'", said), said


def test_gateway_image_drains_and_ends_well_without_network_and_privileges(docker: Docker, images: Images) -> None:
    options = (*LOCKED_DOWN, "--network", "none")
    with container(docker, images.gateway, "--drain-delay", "1", options=options) as name:
        until(lambda: "Listening" in docker("logs", name), "the gateway listens")
        assert docker("exec", name, "id", "--user") == "1000"
        assert docker.inspect(name)["State"]["Health"]["Status"] != "healthy"  # there is no server
        docker("stop", "--time", "60", name)
        assert docker.inspect(name)["State"]["ExitCode"] == 0
        assert "Draining" in docker("logs", name)
