"""The NVIDIA GPUs of this machine, as far as building for one must know them.

Owns the calls of cuda-python that say so. Never allocates or runs anything.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

Capability = tuple[int, int]


@dataclass(frozen=True)
class Gpu:
    """A GPU.

    Args:
        ordinal: as CUDA counts them.
        capability: its compute capability, major and minor.
        free_bytes: memory that nobody uses.
    """

    ordinal: int
    capability: Capability
    free_bytes: int


def gpus_at_hand() -> tuple[Gpu, ...]:
    """Every GPU; none where there is no driver, or no cuda-python to ask it."""
    try:
        cuda = importlib.import_module("cuda.bindings.runtime")
    except ImportError:
        return ()
    status, count = cuda.cudaGetDeviceCount()
    if status != cuda.cudaError_t.cudaSuccess:
        return ()
    return tuple(_gpu(cuda, ordinal) for ordinal in range(count))


def select(ordinal: int) -> None:
    """Make it the GPU that the calling thread builds for."""
    importlib.import_module("cuda.bindings.runtime").cudaSetDevice(ordinal)


def target(capability: Capability) -> str:
    """A compute capability as manifests spell it, such as `sm_89`."""
    return f"sm_{capability[0]}{capability[1]}"


def _gpu(cuda: Any, ordinal: int) -> Gpu:
    kinds = cuda.cudaDeviceAttr
    wanted = (kinds.cudaDevAttrComputeCapabilityMajor, kinds.cudaDevAttrComputeCapabilityMinor)
    major, minor = (int(cuda.cudaDeviceGetAttribute(kind, ordinal)[1]) for kind in wanted)
    cuda.cudaSetDevice(ordinal)
    status, free, _ = cuda.cudaMemGetInfo()
    return Gpu(ordinal, (major, minor), int(free) if status == cuda.cudaError_t.cudaSuccess else 0)
