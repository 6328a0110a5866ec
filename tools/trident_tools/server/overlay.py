"""A repository with other serving parameters, without touching it.

Owns a folder that holds the changed configurations of cores and links for everything else. Never copies an engine.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from trident_ensemble.contract import layout
from trident_ensemble.contract.layout import ModelNames
from trident_ensemble.contract.settings import CoreSettings
from trident_ensemble.wiring import read_core_settings, with_core_settings


def served_settings(repository: Path, names: ModelNames) -> CoreSettings:
    """Return the settings with which a core of a repository would be served.

    Raises:
        ConfigError: the core's configuration has an unknown or malformed key.
    """
    return read_core_settings(_config(repository, names).read_text())


def overlay(repository: Path, folder: Path, settings: Mapping[ModelNames, CoreSettings]) -> Path:
    """Make a repository with other settings of some cores in `folder`, and return it.

    It has links into `repository`.
    """
    changed = {names.core for names in settings}
    for model in repository.iterdir():
        if model.name not in changed:
            (folder / model.name).symlink_to(model.resolve())
    for names, wanted in settings.items():
        core = folder / names.core
        core.mkdir()
        for item in (repository / names.core).iterdir():
            if item.name != layout.CONFIG_FILE:
                (core / item.name).symlink_to(item.resolve())
        _config(folder, names).write_text(with_core_settings(_config(repository, names).read_text(), wanted))
    return folder


def _config(repository: Path, names: ModelNames) -> Path:
    return repository / names.core / layout.CONFIG_FILE
