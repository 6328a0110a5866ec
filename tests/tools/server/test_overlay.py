"""The repository that a server is given in place of the user's."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

from trident_ensemble.contract import layout
from trident_ensemble.contract.layout import ModelNames
from trident_ensemble.contract.model_card import ModelCard
from trident_ensemble.contract.settings import CoreSettings
from trident_ensemble.wiring import RepositorySettings, render_repository
from trident_tools.server.overlay import overlay, served_settings, show_version, show_versions, write_bytecode

NAMES = ModelNames()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    for name, text in render_repository(RepositorySettings(1, 1), ModelCard("served", 0, 64)).items():
        path = tmp_path / "repository" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    for version in ("1", "2", "10", "aside-3"):
        (tmp_path / "repository" / "core" / version).mkdir()
    return tmp_path / "repository"


def test_overlay_has_versions_and_settings_and_nothing_that_may_go_away(repository: Path, tmp_path: Path) -> None:
    folder = tmp_path / "overlay"
    folder.mkdir()
    overlay(repository, folder, {NAMES: CoreSettings(max_queue_size=7)})
    assert sorted(entry.name for entry in (folder / "core").iterdir()) == ["1", "10", "2", "config.pbtxt"]
    assert served_settings(folder, NAMES).max_queue_size == 7
    assert served_settings(repository, NAMES).max_queue_size != 7
    show_version(folder, NAMES, 2, repository / "core" / "2")
    assert layout.version_numbers(folder / "core") == [2]
    assert (folder / "core" / "2").resolve() == repository / "core" / "2"
    (repository / "core" / "2").rename(layout.aside_folder(repository / "core", 2))
    show_version(folder, NAMES, 1, repository / "core" / "1")
    assert sorted(entry.name for entry in (folder / "core").iterdir()) == ["1", "config.pbtxt"]


def test_overlay_has_the_versions_of_the_repository_at_each_start(repository: Path, tmp_path: Path) -> None:
    folder = tmp_path / "overlay"
    folder.mkdir()
    overlay(repository, folder, {NAMES: CoreSettings(max_queue_size=7)})
    core = repository / "core"
    (core / "10").rename(layout.aside_folder(core, 10))
    (core / "2").rmdir()
    (core / "11").mkdir()
    show_versions(folder, NAMES, repository)
    assert sorted(entry.name for entry in (folder / "core").iterdir()) == ["1", "11", "config.pbtxt"]
    assert all(entry.exists() for entry in (folder / "core").iterdir())
    assert served_settings(folder, NAMES).max_queue_size == 7


def test_write_bytecode_leaves_nothing_for_the_first_import_to_write(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Triton loads a model again whose folder has changed since it was loaded."""
    write_bytecode(repository, NAMES)
    model = repository / "ensemble_unary" / "1" / "model.py"
    (cached,) = (model.parent / "__pycache__").iterdir()
    assert str(cached) == importlib.util.cache_from_source(str(model))
    before = cached.stat().st_mtime_ns
    spec = importlib.util.spec_from_file_location("model", model)
    assert spec is not None
    assert spec.loader is not None
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    assert spec.loader.get_code("model") is not None  # type: ignore[attr-defined]
    assert [path.stat().st_mtime_ns for path in (model.parent / "__pycache__").iterdir()] == [before]
    for folder in repository.rglob("*"):
        folder.chmod(0o555)
    write_bytecode(repository, NAMES)
