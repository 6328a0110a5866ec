"""A repository with other serving parameters, without touching it.

Owns a folder that holds the core's changed configuration and links for everything else. Never copies an engine.
"""

from __future__ import annotations

from pathlib import Path

from trident_ensemble.contract import layout
from trident_ensemble.contract.settings import CoreSettings
from trident_ensemble.wiring import read_core_settings, with_core_settings


def served_settings(repository: Path) -> CoreSettings:
    """Return the settings with which the core of a repository would be served.

    Raises:
        ConfigError: the core's configuration has an unknown or malformed key.
    """
    return read_core_settings(_config(repository).read_text())


def overlay(repository: Path, folder: Path, settings: CoreSettings) -> Path:
    """Make a repository with other settings in `folder`, and return it; it has links into `repository`."""
    for model in repository.iterdir():
        if model.name != layout.CORE:
            (folder / model.name).symlink_to(model.resolve())
    core = folder / layout.CORE
    core.mkdir()
    for item in (repository / layout.CORE).iterdir():
        if item.name != layout.CONFIG_FILE:
            (core / item.name).symlink_to(item.resolve())
    _config(folder).write_text(with_core_settings(_config(repository).read_text(), settings))
    return folder


def _config(repository: Path) -> Path:
    return repository / layout.CORE / layout.CONFIG_FILE
