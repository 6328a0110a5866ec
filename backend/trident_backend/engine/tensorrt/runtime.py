"""The choice of TensorRT's Python module for a manifest, and the checks that it fits.

Owns the modules' names and the check of version and GPU against what the plan was built with. Never opens a plan.
"""

from __future__ import annotations

import importlib
from typing import Any

from trident_ensemble.contract.errors import ArtifactError
from trident_ensemble.contract.manifest import Compiler, sm_target

#: By compiler: the modules that serve it, the first to be had is taken, and what to install.
_MODULES = {
    "tensorrt": (("tensorrt",), "pip install tensorrt"),
    "tensorrt_rtx": (("tensorrt_rtx", "tensorrt_rtx_bindings"), "pip install tensorrt_rtx"),
}


def import_runtime(compiler: Compiler) -> Any:
    """Return the module that reads this compiler's plans, in the version that wrote them.

    Raises:
        ArtifactError: it is not installed, or in another version.
    """
    names, remedy = _MODULES[compiler.name]
    module = _first(names)
    if module is None:
        raise ArtifactError(f"compiler.name: the engine needs {compiler.name}, which is not installed: {remedy}")
    if module.__version__ != compiler.version:
        raise ArtifactError(
            f"compiler.version: the plan was built by {compiler.name} {compiler.version}, {module.__version__} is "
            "installed here; build again, or install that version"
        )
    return module


def check_target(compiler: Compiler, capability: tuple[int, int], ordinal: int) -> None:
    """Compare the GPU that the plan was built for with this machine's.

    Raises:
        ArtifactError: they differ.
    """
    found = sm_target(capability)
    if compiler.target != found:
        raise ArtifactError(
            f"compiler.target: the plan was built for {compiler.target}, GPU {ordinal} is {found}; build again for it"
        )


def _first(names: tuple[str, ...]) -> Any:
    for name in names:
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name != name:
                raise ArtifactError(f"{name}: something that it needs is missing: {error}") from None
    return None
