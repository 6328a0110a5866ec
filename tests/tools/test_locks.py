"""That locks/ holds what pyproject.toml asks for, on every Python it is for."""

from __future__ import annotations

import importlib.metadata
import re
import sys
from functools import cache
from pathlib import Path

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from trident_tools.server.triton_server import WHEEL

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
#: What tools/setup.sh installs for each command, and docker/Dockerfile for its engines.
SERVE = ("build", "numpy", "base", "openvino", "gateway", "bench")
TEST = (*SERVE, "test", "torch-cuda")
GPU = (*TEST, "tensorrt")
IMAGE = ("build", "numpy", "base", "gateway", "tensorrt")
IMAGE_FOR_KERNELS = ("build", "numpy", "base", "gateway", "cuda")
IMAGE_FOR_CPUS = ("build", "numpy", "base", "gateway", "openvino")
GATEWAY_IMAGE = ("gateway-image",)
#: The extras that each holds, beside the project's own dependencies.
EXTRAS = {
    SERVE: ("openvino", "server", "gateway", "tracing", "bench"),
    TEST: ("openvino", "server", "gateway", "tracing", "bench", "test", "check", "compare", "tensorrt-rtx"),
    GPU: (
        "openvino", "server", "gateway", "tracing", "bench", "test", "check", "compare", "tensorrt-rtx", "tensorrt",
    ),
    IMAGE: ("server", "gateway", "tracing", "tensorrt"),
    IMAGE_FOR_KERNELS: ("server", "gateway", "tracing", "cuda"),
    IMAGE_FOR_CPUS: ("server", "gateway", "tracing", "openvino"),
    GATEWAY_IMAGE: ("gateway", "tracing"),
}  # fmt: skip
#: What tools/setup_clients.sh installs, each in an environment of its own, and what it is installed for.
CLIENTS: dict[tuple[str, ...], list[str]] = {
    ("clients",): ["openai", "litellm", "langchain-openai"],
    ("clients-pinned",): ["instructor", "aiperf"],
    ("manifests",): ["checkov", "cyclonedx-bom"],
}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
EVERY_PYTHON = pytest.mark.parametrize("python", PYTHONS)
EVERY_SET = pytest.mark.parametrize(
    "names", EXTRAS, ids=["serve", "test", "gpu", "image", "image for kernels", "image for CPUs", "gateway image"]
)


@cache
def lines(name: str) -> tuple[str, ...]:
    """The entries of one lock, each in one line."""
    text = (ROOT / "locks" / f"{name}.txt").read_text(encoding="utf-8").replace("\\\n", " ")
    return tuple(line for line in text.splitlines() if line and not line.startswith("#"))


def environment(python: str) -> dict[str, str]:
    """Linux on x86_64 with this Python in its first release, which asks for more than later ones, as markers see it."""
    return {
        **{name: str(value) for name, value in default_environment().items()},
        "platform_machine": "x86_64", "python_version": python, "python_full_version": f"{python}.0",
        "sys_platform": "linux",
    }  # fmt: skip


def locked(names: tuple[str, ...], python: str) -> dict[str, Version]:
    """What these locks install on this Python; no package has two versions."""
    versions: dict[str, Version] = {}
    for name in names:
        for line in lines(name):
            requirement = Requirement(line.split(" --hash")[0])
            if requirement.marker is None or requirement.marker.evaluate(environment(python)):
                (pin,) = requirement.specifier
                assert pin.operator == "==", line
                version = Version(pin.version)
                assert versions.setdefault(canonicalize_name(requirement.name), version) == version, line
    return versions


def unmet(requirements: list[str], versions: dict[str, Version], python: str, extra: str = "") -> list[str]:
    """The requirements that hold on this Python and that these versions do not meet."""
    wanted = map(Requirement, requirements)
    return [
        str(one)
        for one in wanted
        if (one.marker is None or one.marker.evaluate({**environment(python), "extra": extra}))
        and not (
            (version := versions.get(canonicalize_name(one.name))) and one.specifier.contains(version, prereleases=True)
        )
    ]


@EVERY_PYTHON
def test_locks_the_image_of_the_gateway_is_small(python: str) -> None:
    foreign = {"numpy", "transformers", "tokenizers", "openvino", "tritonclient"}
    assert not locked(GATEWAY_IMAGE, python).keys() & foreign


@EVERY_PYTHON
@EVERY_SET
def test_locks_each_requirement_is_locked_at_a_version_that_meets_it(names: tuple[str, ...], python: str) -> None:
    project = PROJECT["project"]
    # An image of the gateway alone has none of the rest, and its wheel is built elsewhere.
    requirements = [] if names == GATEWAY_IMAGE else [*project["dependencies"], *PROJECT["build-system"]["requires"]]
    for extra in EXTRAS[names]:
        requirements += project["optional-dependencies"][extra]
    assert unmet(requirements, locked(names, python), python) == []


def test_locks_every_extra_is_locked() -> None:
    assert {extra for extras in EXTRAS.values() for extra in extras} == set(PROJECT["project"]["optional-dependencies"])


@pytest.mark.parametrize("path", sorted((ROOT / "locks").glob("*.txt")), ids=lambda path: path.stem)
def test_locks_each_line_is_one_version_with_hashes_and_no_place(path: Path) -> None:
    assert lines(path.stem)
    for line in lines(path.stem):
        assert re.fullmatch(r"[a-z0-9.-]+==[^ ;]+( ; python_version [^-]+?)?( +--hash=sha256:[0-9a-f]{64})+", line), (
            line
        )
    assert "://" not in path.read_text(encoding="utf-8")


@cache
def needs(name: str) -> tuple[Version, list[str]] | None:
    """The version of a package that is installed here, and its requirements."""
    try:
        package = importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return None
    return Version(package.version), package.requires or []


@EVERY_SET
def test_locks_what_locked_packages_need_is_locked_too(names: tuple[str, ...]) -> None:
    """As far as the packages at hand tell: those that are installed here in the locked version."""
    python = f"3.{sys.version_info.minor}"
    versions = locked(names, python)
    known = {name: found[1] for name in versions if (found := needs(name)) and found[0] == versions[name]}
    assert len(known) > len(versions) / 2
    assert {name: missing for name, given in known.items() if (missing := unmet(given, versions, python))} == {}


def test_locks_both_builds_of_torch_are_of_one_version() -> None:
    (cpu,) = lines("torch-cpu")
    (cuda,) = (line for line in lines("torch-cuda") if line.startswith("torch=="))
    assert cpu.split(" ")[0] == cuda.split(" ")[0] + "+cpu"


@EVERY_PYTHON
@pytest.mark.parametrize("names", CLIENTS, ids=lambda names: names[0])
def test_locks_clients_are_whole_and_beside_each_other(names: tuple[str, ...], python: str) -> None:
    versions = locked(names, python)
    assert unmet(CLIENTS[names], versions, python) == []
    environment_of_clients = ROOT / ".venv-clients" / names[0]
    if python == f"3.{sys.version_info.minor}" and environment_of_clients.exists():
        found = {
            canonicalize_name(package.name): package
            for folder in environment_of_clients.glob("lib/python*/site-packages")
            for package in importlib.metadata.distributions(path=[str(folder)])
        }
        assert {name: Version(package.version) for name, package in found.items()} == versions
        assert {
            name: missing for name, p in found.items() if (missing := unmet(p.requires or [], versions, python))
        } == {}


def test_locks_set_up_of_clients_installs_these_locks() -> None:
    script = (ROOT / "tools" / "setup_clients.sh").read_text(encoding="utf-8")
    (names,) = re.findall(r"^for name in (.*); do$", script, re.MULTILINE)
    assert {(name,) for name in names.split()} == set(CLIENTS)
    installs = re.findall(r"pip --python|uv pip install", script)
    assert len(installs) == script.count("--require-hashes") == 2
    assert "npm ci" in script


def test_locks_set_up_and_the_image_install_these_locks_and_nothing_else() -> None:
    script = (ROOT / "tools" / "setup.sh").read_text(encoding="utf-8")
    sets = dict(re.findall(r"^    (\w+)\) locks=\((.*)\) ;;$", script, re.MULTILINE))
    for name, expected in {"serve": SERVE, "test": TEST, "gpu": GPU}.items():
        assert set(sets[name].split()) == {*expected} - {"torch-cuda"}
    for build in ("cpu", "cuda"):
        assert f"--require-hashes --no-deps --requirement locks/torch-{build}.txt" in script
    image = (ROOT / "docker" / "Dockerfile").read_text(encoding="utf-8")
    for text in (script, image):
        installs = re.findall(r"^ *(?:pip|RUN .*pip install|.*&& .*pip install) (.*)$", text, re.MULTILINE)
        assert installs
        assert all("--require-hashes" in install or "--no-deps" in install for install in installs)
    assert [line.split(" ")[0] for line in lines("tritonserver")] == [WHEEL]
