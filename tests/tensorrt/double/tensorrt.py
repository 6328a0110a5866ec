"""Stands for the module `tensorrt`: TensorRT-RTX's network API with the double's builder and runtime.

Owns what differs. Full TensorRT compiles for the GPU at hand alone, so it names no compute capability.
"""

from __future__ import annotations

from typing import Any

import tensorrt_rtx_bindings as real

from tests.tensorrt.double.building import Builder
from tests.tensorrt.double.executing import Runtime
from tests.tensorrt.recording import weights_class

__version__ = "11.0.0.0"
_ABSENT = {"ComputeCapability", "CudaGraphStrategy", "DynamicShapesKernelSpecializationStrategy"}

Weights = weights_class(real)


def __getattr__(name: str) -> Any:
    if name in _ABSENT or name.startswith("__"):
        raise AttributeError(f"module 'tensorrt' has no attribute {name!r}")
    return getattr(real, name)


__all__ = ["Builder", "Runtime", "Weights"]
