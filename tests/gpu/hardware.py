"""What this machine has of what runs on a GPU: devices, and TensorRT's Python modules.

Owns the looking and the sentences that name what is missing. Never uses a device beyond asking for it.
`python -m tests.gpu.hardware` says in one sentence what is missing and exits with 2, or exits with 0.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from functools import cache
from typing import Any

#: By compiler, the modules of which one is needed, as the host looks for them.
MODULES = {"tensorrt": ("tensorrt",), "tensorrt_rtx": ("tensorrt_rtx", "tensorrt_rtx_bindings")}


def cuda_missing() -> str:
    """Why no CUDA device can be used; empty if one can."""
    try:
        runtime: Any = importlib.import_module("cuda.bindings.runtime")
    except ImportError as error:
        return f"no CUDA for Python (pip install cuda-bindings): {error}"
    status, count = runtime.cudaGetDeviceCount()
    if status != runtime.cudaError_t.cudaSuccess:
        return f"no CUDA device: cudaGetDeviceCount says {status.name}"
    return "" if count else "no CUDA device"


@cache
def num_gpus() -> int:
    """How many CUDA devices there are."""
    if cuda_missing():
        return 0
    count: int = importlib.import_module("cuda.bindings.runtime").cudaGetDeviceCount()[1]
    return count


@cache
def capability(ordinal: int = 0) -> tuple[int, int]:
    """A device's compute capability: major, minor."""
    runtime: Any = importlib.import_module("cuda.bindings.runtime")
    kinds = runtime.cudaDeviceAttr
    major = runtime.cudaDeviceGetAttribute(kinds.cudaDevAttrComputeCapabilityMajor, ordinal)[1]
    minor = runtime.cudaDeviceGetAttribute(kinds.cudaDevAttrComputeCapabilityMinor, ordinal)[1]
    return int(major), int(minor)


def gpu_name(ordinal: int = 0) -> str:
    """A device's name, with its compute capability."""
    runtime: Any = importlib.import_module("cuda.bindings.runtime")
    properties = runtime.cudaGetDeviceProperties(ordinal)[1]
    major, minor = capability(ordinal)
    return f"{bytes(properties.name).split(bytes(1))[0].decode()} (sm_{major}{minor})"


def module_missing(compiler: str) -> str:
    """Why a compiler's engines cannot be built and run here; empty if its module is there."""
    names = MODULES[compiler]
    if any(importlib.util.find_spec(name) is not None for name in names):
        return ""
    return f"no module {' or '.join(names)} (pip install {names[0]})"


def import_compiler(compiler: str) -> Any:
    """The module of a compiler that is there."""
    return importlib.import_module(next(name for name in MODULES[compiler] if importlib.util.find_spec(name)))


def anything_missing() -> str:
    """Why nothing of TensorRT can run here; empty if something can."""
    reasons = [module_missing(compiler) for compiler in MODULES]
    return cuda_missing() or ("; ".join(reasons) if all(reasons) else "")


def main() -> int:
    """Say what is missing."""
    reason = cuda_missing()
    if reason:
        print(f"this needs an NVIDIA GPU: {reason}", file=sys.stderr)
    return 2 if reason else 0


if __name__ == "__main__":
    sys.exit(main())
