"""Where the command runs, and what the kernel says of memory there."""

from __future__ import annotations

from pathlib import Path

import pytest

from trident_tools.serve import _restarts
from trident_tools.server.container import runs_in_container
from trident_tools.server.memory_kills import MemoryKills


@pytest.mark.parametrize("mark", [".dockerenv", "run/.containerenv"])
def test_container_a_file_of_the_container_engine(mark: str, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    assert not runs_in_container({}, tmp_path)
    (tmp_path / mark).touch()
    assert runs_in_container({}, tmp_path)


@pytest.mark.parametrize("name", ["KUBERNETES_SERVICE_HOST", "container"])
def test_container_a_variable_of_the_container_engine(name: str, tmp_path: Path) -> None:
    assert runs_in_container({name: "podman"}, tmp_path)
    assert not runs_in_container({name: ""}, tmp_path)


@pytest.mark.parametrize(
    ("asked", "at_terminal", "in_container", "expected"),
    [
        (None, True, False, True),
        (None, True, True, False),
        (None, False, False, False),
        (True, False, True, True),
        (False, True, False, False),
    ],
)
def test_container_restarts_are_on_at_a_terminal_outside_containers(
    asked: bool | None, at_terminal: bool, in_container: bool, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: at_terminal)
    monkeypatch.setattr("sys.stderr.isatty", lambda: False)
    monkeypatch.setattr("trident_tools.serve.runs_in_container", lambda _environment: in_container)
    assert _restarts(asked) == expected


@pytest.mark.parametrize(
    ("groups", "file"),
    [
        ("0::/user.slice/session.scope\n", "user.slice/session.scope/memory.events"),
        ("0::/\n", "memory.events"),
        ("0::/outside/of/the/container\n", "memory.events"),
        ("5:memory:/docker/abc\n0::/\n", "memory/docker/abc/memory.oom_control"),
        ("5:memory:/docker/abc\n0::/\n", "memory/memory.oom_control"),
    ],
)
def test_container_ends_for_lack_of_memory_are_found_in_either_version_of_control_groups(
    groups: str, file: str, tmp_path: Path
) -> None:
    (tmp_path / "groups").write_text(groups)
    events = tmp_path / "mount" / file
    events.parent.mkdir(parents=True)
    events.write_text("oom 3\noom_kill 2\noom_group_kill 0\n")
    kills = MemoryKills(tmp_path / "groups", tmp_path / "mount")
    assert not kills.have_happened()
    events.write_text("oom 9\noom_kill 3\noom_group_kill 0\n")
    assert kills.have_happened()


def test_container_nothing_is_said_where_the_kernel_does_not_count(tmp_path: Path) -> None:
    (tmp_path / "groups").write_text("1:cpu:/\n0::/\n")
    assert not MemoryKills(tmp_path / "groups", tmp_path).have_happened()
    assert not MemoryKills(tmp_path / "none", tmp_path).have_happened()
    MemoryKills()
