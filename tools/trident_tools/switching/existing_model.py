"""A model that is built already, for which another engine is built.

Owns what the new engine must agree with before it is built, and the number that it gets. Never writes anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from trident_ensemble.contract import layout
from trident_ensemble.contract.digests import file_digests
from trident_ensemble.contract.errors import BuildError
from trident_ensemble.contract.layout import ModelNames
from trident_ensemble.contract.manifest import Manifest
from trident_ensemble.contract.model_card import ModelCard
from trident_ensemble.contract.settings import CoreSettings
from trident_ensemble.wiring import RepositorySettings, read_num_instances, render_repository
from trident_tools.building.memory_use import MemoryUse, memory_use
from trident_tools.building.preflight import check_models
from trident_tools.server.built_models import read_engine_manifest, read_model_card
from trident_tools.server.overlay import served_settings
from trident_tools.switching.compatibility import ELSEWHERE, check_replaces, check_text, text_digests


@dataclass(frozen=True)
class ExistingModel:
    """A model of a repository.

    Args:
        names: of its models.
        manifest: of the engine that is served.
        card: of the model.
        settings: with which the repository was rendered.
        version: the number for the new engine.
    """

    names: ModelNames
    manifest: Manifest
    card: ModelCard
    settings: RepositorySettings
    version: int

    @property
    def memory(self) -> MemoryUse:
        """The memory that the engine takes beside which the new one will be loaded."""
        return memory_use(self.names.ensemble, self.manifest, self.settings.core.gpu)

    def check_tokenizer(self, engine: Path) -> None:
        """Refuse a tokenizer that is not the model's, before the network is compiled.

        Args:
            engine: the new engine's folder, which has the tokenizer's files.

        Raises:
            ServerError: names a file.
        """
        folder = engine / layout.TOKENIZER_FOLDER
        paths = sorted(path for path in folder.rglob("*") if path.is_file())
        names = [path.relative_to(engine).as_posix() for path in paths]
        derived = {name: digest for name, digest in text_digests(self.manifest).items() if name not in names}
        known = {name: digest for name, digest in derived.items() if "/" not in name}
        check_text(self.manifest, known | dict(zip(names, file_digests(paths), strict=True)))


def open_existing(repository: Path, names: ModelNames) -> ExistingModel:
    """Return the model for which an engine is to be built.

    Raises:
        TridentError: there is none, or another release of Trident has written its files.
    """
    check_models(repository, [names])
    card = read_model_card(repository, names)
    if card is None:
        raise _written_otherwise(repository / names.ensemble / layout.CONFIG_FILE)
    counts = [
        read_num_instances((repository / model / layout.CONFIG_FILE).read_text(encoding="utf-8"))
        for model in (names.preprocessing, names.postprocessing)
    ]
    settings = RepositorySettings(counts[0], counts[1], served_settings(repository, names), names)
    for name, text in render_repository(settings, card).items():
        path = repository / name
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            raise _written_otherwise(path)
    core = repository / names.core
    taken = [*layout.version_numbers(core), *layout.versions_aside(core)]
    return ExistingModel(names, read_engine_manifest(repository, names), card, settings, max(taken) + 1)


def check_only_version(repository: Path, names: ModelNames) -> None:
    """Refuse to build version 1 anew where a model has others, whose engine would be served with the new one's card.

    Raises:
        BuildError: names the versions.
    """
    core = repository / names.core
    others = {*layout.version_numbers(core), *layout.versions_aside(core)} - {1}
    if layout.aside_folder(core, 1).is_dir():
        others.add(1)
    if others:
        raise BuildError(
            f"--repository: {core} has version {', '.join(map(str, sorted(others)))}, and only version 1 would be "
            "replaced; add the engine with --new-version, or remove the other versions' folders"
        )


def check_asked(existing: ExistingModel, *, asked: CoreSettings, served: Sequence[str], instances: bool) -> None:
    """Refuse options that would change what all versions of the model share.

    Args:
        existing: the model.
        asked: its settings, with those of the command's options in place of its own.
        served: names that the options give it.
        instances: whether the options say how many processes preprocessing or postprocessing has.

    Raises:
        BuildError: names the option.
    """
    shared = "which all versions of a model share"
    if asked != existing.settings.core:
        differing = next(name for name, value in vars(asked).items() if value != getattr(existing.settings.core, name))
        raise BuildError(
            f"--{differing.replace('_', '-')}: it changes the settings of {existing.names.core}, {shared}; leave it "
            "out, or give it to `trident serve`"
        )
    if instances:
        raise BuildError(f"--preprocessing-instances and --postprocessing-instances: {shared}; leave them out")
    own = {existing.card.name, *existing.card.aliases}
    if set(served) - own:
        raise BuildError(
            f"--served-name and --alias: the model's are {', '.join(sorted(own))}, {shared}; leave them out"
        )


def new_card(existing: ExistingModel, manifest: Manifest, card: ModelCard) -> ModelCard:
    """Return the card of the model with its new engine.

    Args:
        existing: the model.
        manifest: the new engine's.
        card: as the new engine would have it by itself.

    Raises:
        ServerError: the engine cannot take the place of the one that is served.
        BuildError: clients would have to know more of it than its age.
    """
    check_replaces(existing.manifest, manifest)
    if replace(card, created=existing.card.created) != existing.card:
        raise BuildError(f"the new engine's card differs from the model's in more than its age; {ELSEWHERE}")
    return card


def _written_otherwise(path: Path) -> BuildError:
    return BuildError(
        f"--new-version: {path} is not as this release of Trident writes it, so another release has built the model or "
        f"somebody has edited it; {ELSEWHERE}"
    )
