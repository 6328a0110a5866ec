"""The other models of the repository into which a model is built.

Owns what a build must know of them, and the refusals that follow. Never changes them.
"""

from __future__ import annotations

from pathlib import Path

from trident_ensemble.contract import layout
from trident_ensemble.contract.errors import ArtifactError, BuildError
from trident_ensemble.contract.layout import ModelNames
from trident_ensemble.contract.model_card import ModelCard
from trident_ensemble.wiring import step_names
from trident_tools.building.memory_use import MemoryUse, memory_use
from trident_tools.server.built_models import find_models, read_engine_manifest, read_model_card
from trident_tools.server.overlay import served_settings


def check_no_clash(repository: Path, names: ModelNames) -> None:
    """Refuse names of which one belongs to another ensemble's models already, or to a model of another maker.

    Raises:
        BuildError: names the folder, and the other ensemble.
    """
    for other in _others(repository, names):
        for model in names.models:
            if model in other.models:
                raise BuildError(
                    f"--name {names.ensemble}: {repository / model} belongs to the models of {other.ensemble!r}, which "
                    "would be damaged; choose another name, or another --repository"
                )
    configs = {model: repository / model / layout.CONFIG_FILE for model in names.models}
    present = {model: path for model, path in configs.items() if path.is_file()}
    own = present.get(names.ensemble)
    if own is not None and step_names(own.read_text(encoding="utf-8", errors="replace")) == names.steps:
        return
    # Without an ensemble of ours that names them, the others are not ours either.
    for model in present:
        raise BuildError(
            f"--name {names.ensemble}: {repository / model} is another kind of model, which would be damaged; choose "
            "another name, or another --repository"
        )


def neighbour_cards(repository: Path, names: ModelNames) -> list[ModelCard]:
    """Return the cards of the other models; earlier versions of Trident wrote none.

    Raises:
        ConfigError: a card cannot be read.
    """
    cards = [read_model_card(repository, other) for other in _others(repository, names)]
    return [card for card in cards if card is not None]


def neighbours_memory(repository: Path, names: ModelNames) -> list[MemoryUse]:
    """Return what the other models take, as far as they have engines that this version of Trident serves.

    Raises:
        ConfigError: the settings of a core cannot be read.
    """
    uses = []
    for other in _others(repository, names):
        try:
            manifest = read_engine_manifest(repository, other)
        except ArtifactError:  # nothing to serve: not built yet, or to be built again
            continue
        uses.append(memory_use(other.ensemble, manifest, served_settings(repository, other).gpu))
    return uses


def _others(repository: Path, names: ModelNames) -> list[ModelNames]:
    return [other for other in find_models(repository) if other != names]
