"""The models that `trident build` has put into a repository.

Owns how they are found: by ensembles whose steps are named as Trident names them. Never looks into an engine beyond its
manifest, and passes over models of other makers.
"""

from __future__ import annotations

from pathlib import Path

from trident_ensemble.contract import layout
from trident_ensemble.contract.errors import ConfigError
from trident_ensemble.contract.layout import ModelNames
from trident_ensemble.contract.manifest import Manifest, read_manifest
from trident_ensemble.contract.model_card import ModelCard
from trident_ensemble.wiring import read_card, step_names


def find_models(repository: Path) -> list[ModelNames]:
    """Return the names of each ensemble's models, sorted; none where there is no repository."""
    found = []
    for config in sorted(repository.glob(f"*/{layout.CONFIG_FILE}")):
        try:
            names = ModelNames(config.parent.name)
        except ConfigError:  # a name that Trident would not give
            continue
        if step_names(config.read_text(encoding="utf-8", errors="replace")) == names.steps:
            found.append(names)
    return found


def read_engine_manifest(repository: Path, names: ModelNames) -> Manifest:
    """Return the manifest of the engine that is served.

    Raises:
        ArtifactError: the engine is missing or damaged.
    """
    return read_manifest(layout.newest_version(repository / names.core))


def read_model_card(repository: Path, names: ModelNames) -> ModelCard | None:
    """Return the card of an ensemble; None where an earlier version of Trident has built it.

    Raises:
        ConfigError: the card cannot be read.
    """
    return read_card((repository / names.ensemble / layout.CONFIG_FILE).read_text(encoding="utf-8"))


def describe_engine(manifest: Manifest) -> str:
    """Describe an engine in one line."""
    architecture, precision = manifest.architecture, manifest.precision
    return (
        f"{architecture.family}, {architecture.num_layers} layers, {precision.compute}, {precision.weights} weights, "
        f"built by {manifest.compiler.name} {manifest.compiler.version}"
    )
