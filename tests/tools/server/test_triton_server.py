"""Finding tritonserver, composing its backends, and its environment."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from trident_ensemble.contract.errors import ServerError
from trident_ensemble.draining import ENVIRONMENT_VARIABLE, DrainNotice
from trident_tools.server.triton_server import (
    Listen,
    compose_backends,
    find_server,
    server_command,
    server_environment,
)

ROOT = Path(__file__).parents[3]


def make_container(folder: Path, minor: int = sys.version_info.minor) -> Path:
    """The layout of Triton's image: a server with a Python backend and another."""
    (folder / "bin").mkdir(parents=True)
    server = folder / "bin" / "tritonserver"
    server.write_text("#!/bin/sh\n", encoding="utf-8")
    server.chmod(0o755)
    for backend in ("python", "tensorrt", "trident"):
        (folder / "backends" / backend).mkdir(parents=True)
    python = folder / "backends" / "python"
    (python / "triton_python_backend_stub").write_bytes(b"\x7fELF..libpython3.%d.so.1.0\0.." % minor)
    (python / "libtriton_python.so").touch()
    (python / "triton_python_backend_utils.py").touch()
    (folder / "backends" / "tensorrt" / "libtriton_tensorrt.so").touch()
    (folder / "backends" / "trident" / "model.py").write_text("an older one", encoding="utf-8")
    return server


def test_triton_server_server_on_path_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = make_container(tmp_path / "opt")
    linked = tmp_path / "bin"
    linked.mkdir()
    (linked / "tritonserver").symlink_to(server)
    monkeypatch.setenv("PATH", str(linked))
    found = find_server()
    assert found.executable == server
    assert found.backends == tmp_path / "opt" / "backends"
    assert found.libraries == ()


def test_triton_server_server_for_another_python_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = make_container(tmp_path, minor=8)
    monkeypatch.setenv("PATH", str(server.parent))
    with pytest.raises(ServerError, match=r"runs Python 3\.8, .* install it with python3\.8 -m pip"):
        find_server()


def test_triton_server_server_without_python_backend_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = make_container(tmp_path)
    (tmp_path / "backends" / "python" / "triton_python_backend_stub").unlink()
    monkeypatch.setenv("PATH", str(server.parent))
    with pytest.raises(ServerError, match="has no Python backend"):
        find_server()


def test_triton_server_no_server_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(ServerError, match=r"pip install --no-deps nvidia-pytriton==0\.7\.0"):
        find_server()


def test_triton_server_numpy_2_is_refused_with_the_wheel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.setattr("importlib.metadata.version", lambda _name: "2.1.0")
    with pytest.raises(ServerError, match="numpy<2"):
        find_server()


def test_triton_server_missing_libpython_names_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = f"libpython3.{sys.version_info.minor}"
    stubs = tmp_path / "pytriton" / "tritonserver" / "python_backend_stubs" / f"3.{sys.version_info.minor}"
    stubs.mkdir(parents=True)
    (tmp_path / "pytriton" / "__init__.py").touch()
    (stubs / "triton_python_backend_stub").touch()
    traced = subprocess.CompletedProcess(
        [], 0, f"\tlibc.so.6 => /lib/libc.so.6 (0x1)\n\t{library}.so.1.0 => not found\n"
    )
    monkeypatch.setattr("subprocess.run", lambda *_args, **_options: traced)
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ServerError, match=rf"sudo apt install {library}$"):
        find_server()


def test_triton_server_composed_backends_hold_the_containers_and_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = make_container(tmp_path / "opt")
    monkeypatch.setenv("PATH", str(server.parent))
    composed = tmp_path / "composed"
    composed.mkdir()
    compose_backends(find_server(), composed)
    assert (composed / "tensorrt" / "libtriton_tensorrt.so").is_file()
    assert sorted(entry.name for entry in (composed / "python").iterdir()) == [
        "libtriton_python.so", "triton_python_backend_stub", "triton_python_backend_utils.py",
    ]  # fmt: skip
    ours = (composed / "trident" / "model.py").read_text(encoding="utf-8")
    assert ours == (ROOT / "backend" / "model.py").read_text(encoding="utf-8")


def test_triton_server_command_and_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = make_container(tmp_path)
    monkeypatch.setenv("PATH", str(server.parent))
    found = find_server()
    words = server_command(found, Path("/models"), Path("/backends"), Listen("127.0.0.1", 1, 2, 3), 5)
    assert words[0] == str(server)
    options = dict(word.split("=") for word in words[1:])
    assert options["--model-repository"] == "/models"
    assert [options[f"--{name}-port"] for name in ("http", "grpc", "metrics")] == ["1", "2", "3"]
    assert {options[f"--{name}-address"] for name in ("http", "grpc", "metrics")} == {"127.0.0.1"}
    environment = server_environment(found, {"PATH": "/usr/bin", "HOME": "/home"})
    assert environment["PATH"].split(os.pathsep) == [str(Path(sys.executable).parent), "/usr/bin"]
    assert environment["HOME"] == "/home"


def test_triton_server_drain_notice_is_seen_through_the_environment(tmp_path: Path) -> None:
    path = tmp_path / "drain"
    seen = DrainNotice.from_environment({ENVIRONMENT_VARIABLE: str(path)})
    assert not seen.given()
    DrainNotice(path).give()
    assert seen.given()
    alone = DrainNotice.from_environment({})
    alone.give()
    assert not alone.given()
