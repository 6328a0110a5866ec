"""The serving options of a command, applied to the cores of a repository.

Owns which option is for which model, and the check that every engine can be served as asked, beside the others. Never
writes a setting anywhere.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

from trident_backend.engine.protocol import EngineSpec
from trident_ensemble.contract.errors import ServerError
from trident_ensemble.contract.layout import ModelNames
from trident_ensemble.contract.manifest import Manifest
from trident_ensemble.contract.settings import CoreSettings, check_limits
from trident_tools.building.memory_use import check_memory, memory_use
from trident_tools.building.preflight import check_machine
from trident_tools.core_options import asks_for_settings, core_settings
from trident_tools.server.overlay import served_settings


def changed_settings(
    args: argparse.Namespace, repository: Path, models: Mapping[ModelNames, Manifest]
) -> dict[ModelNames, CoreSettings]:
    """Return the settings of the cores that options change, after a check that all engines can be served with theirs.

    Raises:
        ServerError: `--model` is not a model of the repository, or is given for nothing; GPUs do not fit an engine; or
            memory does not hold all engines.
        ConfigError: an engine cannot serve its settings.
    """
    if args.model is not None and args.model not in {names.ensemble for names in models}:
        raise ServerError(f"--model {args.model}: the repository has {', '.join(names.ensemble for names in models)}")
    if args.model is not None and not asks_for_settings(args):
        raise ServerError("--model: says which model the serving options are for, and there are none")
    changed, uses = {}, []
    for names, manifest in models.items():
        settings = served_settings(repository, names)
        if asks_for_settings(args) and args.model in {None, names.ensemble}:
            settings = changed[names] = core_settings(args, settings)
        check_limits(settings, EngineSpec.from_manifest(manifest))
        check_machine(settings.gpu, manifest)
        uses.append(memory_use(names.ensemble, manifest, settings.gpu))
    check_memory(uses)
    return changed
