"""How fast a GPU copies its own memory: what its memory can do, as measured and not as printed in a data sheet.

Owns the copies and their timing by the device's own clock. Never runs a network.
"""

from __future__ import annotations

import importlib
from statistics import median
from typing import Any

_COPY_BYTES = 1 << 30
_COPIES = 10
_ROUNDS = 5


def copy_bandwidth(ordinal: int = 0) -> float:
    """Bytes per second, read and written, of copies of 1 GiB on the device: the median of a few rounds.

    Raises:
        RuntimeError: CUDA refuses; 2 GiB must be free.
    """
    runtime: Any = importlib.import_module("cuda.bindings.runtime")

    def call(name: str, *arguments: Any) -> Any:
        status, *results = getattr(runtime, name)(*arguments)
        if status != runtime.cudaError_t.cudaSuccess:
            raise RuntimeError(f"{name}: {status.name}")
        return results[0] if results else None

    call("cudaSetDevice", ordinal)
    source, target = call("cudaMalloc", _COPY_BYTES), call("cudaMalloc", _COPY_BYTES)
    begin, end = call("cudaEventCreate"), call("cudaEventCreate")
    kind = runtime.cudaMemcpyKind.cudaMemcpyDeviceToDevice
    rates: list[float] = []
    try:
        for _ in range(_ROUNDS + 1):
            call("cudaEventRecord", begin, 0)
            for _ in range(_COPIES):
                call("cudaMemcpyAsync", target, source, _COPY_BYTES, kind, 0)
            call("cudaEventRecord", end, 0)
            call("cudaEventSynchronize", end)
            seconds = call("cudaEventElapsedTime", begin, end) / 1000
            rates.append(2 * _COPY_BYTES * _COPIES / seconds)
    finally:
        for event in (begin, end):
            call("cudaEventDestroy", event)
        for address in (source, target):
            call("cudaFree", address)
    return median(rates[1:])  # the first warms up
