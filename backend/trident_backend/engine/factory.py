"""Loads an engine folder with the host of its compiler.

Owns the choice of host by the compiler that the manifest names; hosts are imported only when needed, so that a machine
needs just its own compiler. Never looks into a network.
"""

from __future__ import annotations

import collections.abc as cabc
import importlib
from pathlib import Path

from trident_backend.engine.protocol import Engine
from trident_ensemble.contract.digests import verify_files
from trident_ensemble.contract.errors import ArtifactError
from trident_ensemble.contract.manifest import Manifest, read_manifest

#: The module that hosts each compiler's engines. It has `load(folder, manifest, gpus) -> Engine`.
_HOSTS = {
    "openvino": "trident_backend.engine.openvino.engine",
    "tensorrt": "trident_backend.engine.tensorrt",
    "tensorrt_rtx": "trident_backend.engine.tensorrt",
    "cuda": "trident_backend.engine.cuda.loading",
}


def load_engine(folder: Path, gpus: cabc.Sequence[int] = ()) -> tuple[Engine, Manifest]:
    """Check an engine folder and load its engine.

    Args:
        folder: holds the manifest, the network and what belongs to it.
        gpus: the GPUs to run on, as CUDA counts them; the first ones when empty. Engines for CPUs ignore them.

    Returns:
        the engine, and the manifest it was loaded by.

    Raises:
        ArtifactError: the folder is damaged, its compiler unknown or not installed, or its network does not match.
        PlanError: there is too little memory.
        EngineError: the device failed.
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
    engine: Engine = host.load(folder, manifest, gpus)
    return engine, manifest
