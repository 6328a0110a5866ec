"""A repository with other serving parameters, without touching it.

Owns a folder that holds the changed configurations of cores and links for everything else. Never copies an engine.
"""

from __future__ import annotations

import contextlib
import py_compile
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
        (folder / names.core).mkdir()
        show_versions(folder, names, repository)
        _config(folder, names).write_text(with_core_settings(_config(repository, names).read_text(), wanted))
    return folder


def show_versions(folder: Path, names: ModelNames, repository: Path) -> None:
    """Let the core of an overlay have the versions that its repository has now.

    Triton refuses a model whose folder has a link that leads nowhere, as one to a version put aside does.

    Args:
        folder: the overlay's, in which the core's settings were laid over.
        names: of the models.
        repository: that of which it is the overlay.
    """
    core = folder / names.core
    for entry in core.iterdir():
        if entry.is_symlink():
            entry.unlink()
    for number in layout.version_numbers(repository / names.core):
        (core / str(number)).symlink_to((repository / names.core / str(number)).resolve())


def show_version(folder: Path, names: ModelNames, version: int, engine: Path) -> None:
    """Let the core of an overlay have one version alone, that of an engine folder anywhere.

    Triton reads the folder of a version only while it loads it, so one that runs is not touched.

    Args:
        folder: the overlay's, in which the core's settings were laid over.
        names: of the models.
        version: its number.
        engine: its folder.
    """
    core = folder / names.core
    wanted = core / str(version)
    with contextlib.suppress(FileNotFoundError):
        wanted.unlink()
    wanted.symlink_to(engine.resolve())
    for entry in core.iterdir():
        if entry.is_symlink() and entry != wanted:  # one that leads nowhere as well
            entry.unlink()


def write_bytecode(repository: Path, names: ModelNames) -> None:
    """Compile the Python of a model's folders, where they can be written, as its processes would at their first start.

    Triton takes a model for another once a file in its folder is younger than it was when it was loaded, and would load
    preprocessing and postprocessing again with their ensemble.
    """
    for model in names.models:
        for source in (repository / model).glob(f"*/{layout.MODEL_FILE}"):
            with contextlib.suppress(OSError):
                py_compile.compile(str(source), quiet=2)


def _config(repository: Path, names: ModelNames) -> Path:
    return repository / names.core / layout.CONFIG_FILE
