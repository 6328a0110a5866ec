"""The NVIDIA GPUs of this machine, as far as building for one must know them.

Owns the calls of cuda-python that say so. Never allocates or runs anything.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trident_ensemble.contract.errors import BuildError

Capability = tuple[int, int]
#: The driver's; with it there is a GPU, whatever CUDA says.
_DEVICE_NODE = Path("/dev/nvidiactl")
_NONE_FOUND = "no NVIDIA GPU found"
#: The first driver that runs CUDA 13, which cuda-python is of.
_FIRST_DRIVER = 580


@dataclass(frozen=True)
class Gpu:
    """A GPU of this machine.

    Args:
        ordinal: as CUDA counts them.
        capability: its compute capability, major and minor.
    """

    ordinal: int
    capability: Capability


@dataclass(frozen=True)
class Gpus:
    """The GPUs of this machine.

    Args:
        found: every GPU, in CUDA's order.
        why_none: why there is none, for people; empty where there are.
    """

    found: tuple[Gpu, ...]
    why_none: str = ""


def count_gpus() -> tuple[int, str]:
    """Return how many GPUs CUDA finds, and why there are none; takes no memory on any of them."""
    try:
        cuda = importlib.import_module("cuda.bindings.runtime")
    except ImportError as error:
        return 0, _without_cuda_python(error)
    status, count = cuda.cudaGetDeviceCount()
    if status != cuda.cudaError_t.cudaSuccess:
        return 0, _why_unusable(cuda, status)
    return int(count), "" if count else _NONE_FOUND


def gpus_at_hand() -> Gpus:
    """Return every GPU that CUDA can use; none of them becomes the calling thread's.

    Raises:
        BuildError: there are GPUs, and CUDA cannot tell of which kind.
    """
    count, why_none = count_gpus()
    cuda = importlib.import_module("cuda.bindings.runtime") if count else None
    return Gpus(tuple(_gpu(cuda, ordinal) for ordinal in range(count)), why_none)


def free_bytes(ordinal: int) -> int:
    """Return the free bytes of a GPU, and make it the calling thread's.

    Raises:
        BuildError: CUDA does not say; names the call.
    """
    cuda = importlib.import_module("cuda.bindings.runtime")
    select(ordinal)
    free, _ = _called(cuda, ordinal, "cudaMemGetInfo")
    return int(free)


def total_bytes(ordinal: int) -> int:
    """Return all bytes of a GPU, taken or free; takes none of them.

    Raises:
        BuildError: CUDA does not say; names the call.
    """
    cuda = importlib.import_module("cuda.bindings.runtime")
    (properties,) = _called(cuda, ordinal, "cudaGetDeviceProperties", ordinal)
    return int(properties.totalGlobalMem)


def select(ordinal: int) -> None:
    """Make it the GPU that the calling thread builds for.

    Raises:
        BuildError: it cannot be used; names the call.
    """
    _called(importlib.import_module("cuda.bindings.runtime"), ordinal, "cudaSetDevice", ordinal)


def _gpu(cuda: Any, ordinal: int) -> Gpu:
    kinds = cuda.cudaDeviceAttr
    wanted = (kinds.cudaDevAttrComputeCapabilityMajor, kinds.cudaDevAttrComputeCapabilityMinor)
    (major,), (minor,) = (_called(cuda, ordinal, "cudaDeviceGetAttribute", kind, ordinal) for kind in wanted)
    return Gpu(ordinal, (int(major), int(minor)))


def _called(cuda: Any, ordinal: int, call: str, *arguments: Any) -> tuple[Any, ...]:
    status, *values = getattr(cuda, call)(*arguments)
    if status != cuda.cudaError_t.cudaSuccess:
        raise BuildError(f"GPU {ordinal} cannot be used: {call}: {_words(cuda, status)}")
    return tuple(values)


def _words(cuda: Any, status: Any) -> str:
    said = cuda.cudaGetErrorString(status)[1]
    return said.decode() if isinstance(said, bytes) else str(said)


def _without_cuda_python(error: ImportError) -> str:
    if not _DEVICE_NODE.exists():
        return _NONE_FOUND
    return f"there is an NVIDIA GPU, but cuda-python cannot be imported ({error}); pip install 'cuda-bindings>=13,<14'"


def _why_unusable(cuda: Any, status: Any) -> str:
    if status.name == "cudaErrorInsufficientDriver":
        # It says the same where there is no driver at all.
        if cuda.cudaDriverGetVersion()[1] or _DEVICE_NODE.exists():
            return f"the NVIDIA driver is too old for CUDA 13, which takes driver {_FIRST_DRIVER} or later"
        return _NONE_FOUND
    if status.name == "cudaErrorNoDevice":
        return _NONE_FOUND
    return f"no NVIDIA GPU can be used: cudaGetDeviceCount: {_words(cuda, status)}"
