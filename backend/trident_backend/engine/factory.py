"""From an engine folder to a running engine.

Owns the choice of host by the compiler that the manifest names; hosts are imported only when needed, so that a machine
needs just its own compiler. Never looks into a network.
"""

from __future__ import annotations

import importlib
from pathlib import Path

from trident_backend.engine.artifact import Manifest, read_manifest, verify_files
from trident_backend.engine.protocol import Engine
from trident_ensemble.errors import ArtifactError

_HOSTS = {"openvino": "trident_backend.engine.openvino"}


def load_engine(folder: Path) -> tuple[Engine, Manifest]:
    """Check an engine folder and load what it holds.

    Raises:
        ArtifactError: the folder is damaged, its compiler unknown or not installed, or its network does not match.
    """
    manifest = read_manifest(folder)
    verify_files(folder, manifest)
    name = manifest.compiler.name
    if name not in _HOSTS:
        raise ArtifactError(f"compiler.name: {name!r} has no host here; {', '.join(_HOSTS)} have")
    try:
        host = importlib.import_module(_HOSTS[name])
    except ImportError as error:
        raise ArtifactError(f"compiler.name: the engine needs {name}, which cannot be imported: {error}") from None
    engine: Engine = host.load(folder, manifest)
    return engine, manifest
