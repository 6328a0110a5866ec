"""From an engine folder to a running engine.

Owns the choice of host by the compiler that the manifest names; hosts are imported only when needed, so that a machine
needs just its own compiler. Never looks into a network.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path

from trident_backend.engine.protocol import Engine
from trident_ensemble.contract.digests import verify_files
from trident_ensemble.contract.errors import ArtifactError
from trident_ensemble.contract.manifest import Manifest, read_manifest

#: By compiler: its host, and whether that runs on a GPU.
_HOSTS = {
    "openvino": ("trident_backend.engine.openvino.engine", False),
    "tensorrt": ("trident_backend.engine.tensorrt", True),
    "tensorrt_rtx": ("trident_backend.engine.tensorrt", True),
}


def load_engine(folder: Path, gpus: Sequence[int] = ()) -> tuple[Engine, Manifest]:
    """Check an engine folder and load what it holds.

    Args:
        folder: the engine's.
        gpus: for an engine that runs on GPUs: which, as CUDA counts them; the first ones when empty.

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
    module, on_gpu = _HOSTS[name]
    try:
        host = importlib.import_module(module)
    except ImportError as error:
        raise ArtifactError(f"compiler.name: the engine needs {name}, which cannot be imported: {error}") from None
    engine: Engine = host.load(folder, manifest, gpus) if on_gpu else host.load(folder, manifest)
    return engine, manifest
