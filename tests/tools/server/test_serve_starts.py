"""What each server of one `trident serve` is given, whatever has become of the repository since the one before."""

from __future__ import annotations

import argparse
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

import pytest
from rich.console import Console

from tests.fakes.manifests import write_small_manifest
from tests.ports import free_ports
from trident_ensemble.contract import layout
from trident_ensemble.contract.model_card import ModelCard
from trident_ensemble.wiring import RepositorySettings, render_repository
from trident_tools import serve
from trident_tools.building.preflight import check_repository
from trident_tools.server.signals import StopSignals
from trident_tools.server.triton_server import Listen


class Process:
    """A server that never runs; writes down the versions of the core that it is given, by where they lie."""

    pid = 1

    def __init__(self, command: list[str], *_: object) -> None:
        self._given = Path(command[0])

    def versions(self) -> dict[str, str]:
        links = [entry for entry in (self._given / "core").iterdir() if entry.is_symlink()]
        assert all(link.is_dir() for link in links), "a link that leads nowhere"
        return {link.name: link.resolve().name for link in links}


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "repository"
    for name, text in render_repository(RepositorySettings(1, 1), ModelCard("served", 0, 64)).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    for version in (1, 2):
        (folder / "core" / str(version)).mkdir()
        write_small_manifest(folder / "core" / str(version), 64)
    return folder


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Process]:
    """The servers that have been started, the last one at the end."""
    processes: list[Process] = []

    def start(*args: Any) -> Process:
        processes.append(Process(*args))
        return processes[-1]

    monkeypatch.setattr(serve, "ServerProcess", start)
    monkeypatch.setattr(serve, "find_server", lambda: Path("/opt/tritonserver"))
    monkeypatch.setattr(serve, "compose_backends", lambda *_: None)
    monkeypatch.setattr(serve, "server_environment", lambda *_: {})
    monkeypatch.setattr(serve, "server_command", lambda _, given, *__: [str(given)])
    return processes


@pytest.mark.parametrize(
    ("options", "given"),
    [
        (["--max-queue-size", "5"], [{"1": "1", "2": "2"}, {"1": "1"}, {"3": "3"}]),
        (["--follow"], [{"2": "2"}, {"2": "aside-2"}, {"3": "3"}]),
    ],
)
def test_serve_each_server_gets_versions_that_are_there(
    repository: Path, started: list[Process], tmp_path: Path, options: list[str], given: list[dict[str, str]]
) -> None:
    parser = argparse.ArgumentParser()
    serve.add_arguments(parser)
    args = parser.parse_args(["--repository", str(repository), "--restart", *options])
    core, own = repository / "core", tmp_path / "own"
    own.mkdir()
    with ExitStack() as stack:
        start = serve._starter(
            args,
            Listen("127.0.0.1", *free_ports(3)),
            check_repository(repository),
            console=Console(quiet=True),
            signals=cast(StopSignals, None),
            folder=own,
            stack=stack,
        )
        start(None, lambda: None)
        assert started[-1].versions() == given[0]
        (core / "2").rename(layout.aside_folder(core, 2))  # as `trident versions --use 1` does
        start(None, lambda: None)
        assert started[-1].versions() == given[1]
        layout.aside_folder(core, 2).rename(core / "3")
        (core / "1").rename(tmp_path / "removed")
        start(None, lambda: None)
        assert started[-1].versions() == given[2]
