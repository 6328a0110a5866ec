"""The installed tritonserver, and the way in which it is called so that it finds Trident.

Owns the search for the server, its backend directory and its environment. Never starts it.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from trident_ensemble.contract import layout
from trident_ensemble.contract.errors import ServerError
from trident_ensemble.wiring import model_shell

WHEEL = "nvidia-pytriton==0.7.0"
_ANY = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 (names of addresses, nothing is bound)
_STUB = "triton_python_backend_stub"
_PYTHON_BACKEND = "python"


@dataclass(frozen=True)
class TritonServer:
    """An installed tritonserver.

    Args:
        executable: path of the program.
        backends: the folder of the backends that came with it.
        stub: the Python backend's stub for the running Python.
        libraries: folders that its dynamic linker must search first.
    """

    executable: Path
    backends: Path
    stub: Path
    libraries: tuple[Path, ...]


@dataclass(frozen=True)
class Listen:
    """The address and the ports at which the server listens."""

    host: str
    http_port: int
    grpc_port: int
    metrics_port: int


def local_address(host: str) -> str:
    """Return the address at which this machine reaches a server that listens on `host`."""
    return _ANY.get(host, host)


def find_server() -> TritonServer:
    """Find tritonserver: the one on PATH, as in a Triton container, or else the one in the nvidia-pytriton wheel.

    Raises:
        ServerError: there is no server, or it cannot run models in this Python; says what to install.
    """
    on_path = shutil.which("tritonserver")
    return _container_server(Path(on_path).resolve()) if on_path else _wheel_server()


def _container_server(executable: Path) -> TritonServer:
    backends = executable.parent.parent / "backends"
    stub = backends / _PYTHON_BACKEND / _STUB
    if not stub.is_file():
        raise ServerError(f"{executable} has no Python backend: {stub} is missing; use a Triton image that has one")
    wanted = re.search(rb"libpython3\.(\d+)\.so", stub.read_bytes())
    if wanted and int(wanted[1]) != sys.version_info.minor:
        raise ServerError(
            f"the Python backend of {executable} runs Python 3.{int(wanted[1])}, Trident is installed for "
            f"3.{sys.version_info.minor}: install it with python3.{int(wanted[1])} -m pip"
        )
    return TritonServer(executable, backends, stub, libraries=())


def _wheel_server() -> TritonServer:
    spec = importlib.util.find_spec("pytriton")
    if spec is None or not spec.submodule_search_locations:
        raise ServerError(
            "tritonserver is not on PATH and its wheel is not installed: "
            f"run `{Path(sys.executable).name} -m pip install --no-deps {WHEEL}`, or run in a Triton container"
        )
    if int(metadata.version("numpy").split(".")[0]) >= 2:
        raise ServerError("the tritonserver of the nvidia-pytriton wheel needs numpy<2: pip install 'numpy<2'")
    package = Path(next(iter(spec.submodule_search_locations)))
    root = package / "tritonserver"
    version = f"3.{sys.version_info.minor}"
    stub = root / "python_backend_stubs" / version / _STUB
    if not stub.is_file():
        raise ServerError(f"the nvidia-pytriton wheel has no Python backend for Python {version}: use 3.10 to 3.13")
    libraries = [package.parent / "nvidia_pytriton.libs"]
    shared = f"libpython{version}.so.1.0"
    own = Path(sysconfig.get_config_var("LIBDIR") or "/nonexistent")
    if (own / shared).is_file():
        libraries.append(own)
    server = TritonServer(root / "bin" / "tritonserver", root / "backends", stub, tuple(libraries))
    _check_linked(server, f"libpython{version}")
    return server


def _check_linked(server: TritonServer, package: str) -> None:
    """Check that the stub finds the system's shared library of Python, without which no model starts."""
    environment = server_environment(server, {"PATH": os.defpath, "LD_TRACE_LOADED_OBJECTS": "1"})
    listed = subprocess.run([server.stub], env=environment, capture_output=True, text=True, check=False)  # noqa: S603
    missing = re.findall(r"(\S+) => not found", listed.stdout)
    if f"{package}.so.1.0" in missing:
        raise ServerError(f"{package}.so.1.0 is missing, tritonserver's Python needs it: sudo apt install {package}")
    if missing:
        raise ServerError(f"libraries of tritonserver's Python backend are missing: {', '.join(missing)}")


def compose_backends(server: TritonServer, folder: Path) -> None:
    """Fill `folder` with the server's backends (large ones linked) and the backend `trident` beside them."""
    for backend in server.backends.iterdir():
        if backend.name not in (_PYTHON_BACKEND, layout.BACKEND):
            (folder / backend.name).symlink_to(backend)
    python = folder / _PYTHON_BACKEND
    python.mkdir()
    for file in (server.backends / _PYTHON_BACKEND).iterdir():
        if file.name not in (_STUB, "__pycache__"):
            shutil.copy(file, python)  # not linked: Triton refuses a shared library that leads out of its folder
    shutil.copy(server.stub, python / _STUB)
    trident = folder / layout.BACKEND
    trident.mkdir()
    (trident / layout.MODEL_FILE).write_text(model_shell("trident_backend"), encoding="utf-8")


def server_command(
    server: TritonServer, repository: Path, backends: Path, listen: Listen, exit_timeout_s: int
) -> list[str]:
    """Return the command line of tritonserver."""
    return [
        str(server.executable),
        f"--model-repository={repository}",
        f"--backend-directory={backends}",
        f"--http-address={listen.host}",
        f"--http-port={listen.http_port}",
        f"--grpc-address={listen.host}",
        f"--grpc-port={listen.grpc_port}",
        f"--metrics-address={listen.host}",
        f"--metrics-port={listen.metrics_port}",
        f"--exit-timeout-secs={exit_timeout_s}",
    ]


def server_environment(server: TritonServer, environment: Mapping[str, str]) -> dict[str, str]:
    """Return `environment` with what tritonserver needs in addition.

    The stub embeds an isolated Python that takes the packages of the first `python3` on PATH, which must be ours.
    """
    paths = [str(Path(sys.executable).parent), environment.get("PATH", os.defpath)]
    libraries = [*map(str, server.libraries), environment.get("LD_LIBRARY_PATH", "")]
    return {
        **environment,
        "PATH": os.pathsep.join(paths),
        "LD_LIBRARY_PATH": os.pathsep.join(filter(None, libraries)),
    }
