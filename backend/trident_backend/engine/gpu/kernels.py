"""Kernels of our own, as the driver loads and launches them.

Owns the calls of CUDA's driver API and their errors. Everything is enqueued on the device's stream, in the one context
that the runtime API has there too. Never knows what a kernel computes: it has a name, and parameters with types.
"""

from __future__ import annotations

import ctypes
import importlib
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from trident_backend.engine.gpu.device import Device, DeviceMemoryError
from trident_backend.engine.gpu.freeing import freed_on_failure
from trident_backend.engine.gpu.program import Kernel
from trident_ensemble.contract.errors import ArtifactError, EngineError

Grid = tuple[int, int, int]

#: The dynamic shared memory that a block may have without being asked for it.
_SHARED_BYTES = 48 * 1024
#: The C types of numbers, by Triton's names.
_NUMBERS: Mapping[str, Any] = {
    "i1": ctypes.c_bool, "i8": ctypes.c_int8, "i16": ctypes.c_int16, "i32": ctypes.c_int32, "i64": ctypes.c_int64,
    "u8": ctypes.c_uint8, "u16": ctypes.c_uint16, "u32": ctypes.c_uint32, "u64": ctypes.c_uint64,
    "fp32": ctypes.c_float, "fp64": ctypes.c_double,
}  # fmt: skip
#: Triton's functions take two addresses of its own behind their parameters, which ours do not use.
_OWN_TYPES = (ctypes.c_void_p, ctypes.c_void_p)
_OWN_VALUES = (0, 0)


class _Loaded(NamedTuple):
    """A kernel on the device, and how it is called: for each parameter its name and Python's type, and all C types."""

    function: Any
    num_threads: int
    shared_bytes: int
    parameters: tuple[tuple[str, type[int] | type[float]], ...]
    types: tuple[Any, ...]


class KernelLibrary:
    """The kernels of an engine on one device; used by one thread at a time.

    All of them are on the device when this returns: the driver would load each at its first launch, which takes time
    and memory that no request should wait for, or be the one to miss, and which it may not do in a capture.

    Args:
        device: where they run; it must be the calling thread's.
        folder: the engine's, which the kernels' files are in.
        kernels: by their names.

    Raises:
        ArtifactError: a file cannot be read, a parameter's type is unknown, or cuda-python is not installed.
        EngineError: the driver refuses one of them.
    """

    def __init__(self, device: Device, folder: Path, kernels: Mapping[str, Kernel]) -> None:
        self._driver = _import_driver()
        self._device = device
        with freed_on_failure() as stack:
            files = {kernel.file for kernel in kernels.values()}
            libraries = {file: self._load(folder, file, stack) for file in sorted(files)}
            self._kernels = {name: self._find(name, kernel, libraries) for name, kernel in kernels.items()}
        self._resources = stack

    def launch(self, name: str, grid: Grid, arguments: Mapping[str, int | float]) -> None:
        """Enqueue one launch.

        Args:
            name: of the kernel.
            grid: programs along each axis, at least one.
            arguments: addresses and numbers by the names of the kernel's parameters.

        Raises:
            EngineError: the driver refuses.
        """
        assert min(grid) > 0, f"{name}: nothing is launched by a grid of {grid}"
        function, num_threads, shared_bytes, parameters, types = self._kernels[name]
        values = *(kind(arguments[key]) for key, kind in parameters), *_OWN_VALUES
        stream = self._device.stream
        launch = self._driver.cuLaunchKernel
        (status,) = launch(function, *grid, num_threads, 1, 1, shared_bytes, stream, (values, types), 0)
        if status:
            self._fail(f"cuLaunchKernel of {name}", status)

    def close(self) -> None:
        """Unload all kernels; nothing that was captured with them can be launched after that."""
        self._resources.close()

    def _load(self, folder: Path, file: str, stack: ExitStack) -> Any:
        try:
            code = (folder / file).read_bytes()
        except OSError as error:
            raise ArtifactError(f"{file}: cannot be read: {error}; build again") from None
        library = self._call("cuLibraryLoadData", file, code, [], [], 0, [], [], 0)
        stack.callback(self._call, "cuLibraryUnload", file, library)
        return library

    def _find(self, name: str, kernel: Kernel, libraries: Mapping[str, Any]) -> _Loaded:
        function = self._call("cuLibraryGetKernel", name, libraries[kernel.file], kernel.entry.encode())
        if kernel.shared_bytes > _SHARED_BYTES:
            kind = self._driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
            # CUDA counts the driver's devices as it counts the runtime's.
            self._call("cuKernelSetAttribute", name, kind, kernel.shared_bytes, function, self._device.ordinal)
        self._call("cuFuncLoad", name, self._call("cuKernelGetFunction", name, function))
        types = tuple(_c_type(name, parameter, dtype) for parameter, dtype in kernel.parameters)
        parameters = tuple(
            (parameter, float if dtype.startswith("fp") else int) for parameter, dtype in kernel.parameters
        )
        return _Loaded(function, kernel.num_threads, kernel.shared_bytes, parameters, (*types, *_OWN_TYPES))

    def _call(self, call: str, of: str, *arguments: Any) -> Any:
        """Call the driver for a file or a kernel, and return the one result, or None."""
        status, *results = getattr(self._driver, call)(*arguments)
        if status:
            self._fail(f"{call} of {of}", status)
        return results[0] if results else None

    def _fail(self, call: str, status: Any) -> None:
        _, text = self._driver.cuGetErrorString(status)
        kind = DeviceMemoryError if status == self._driver.CUresult.CUDA_ERROR_OUT_OF_MEMORY else EngineError
        raise kind(f"GPU {self._device.ordinal}: {call} failed: {text.decode()} ({status.name})")


def _c_type(kernel: str, parameter: str, dtype: str) -> Any:
    if dtype.startswith("*"):
        return ctypes.c_void_p
    if dtype not in _NUMBERS:
        raise ArtifactError(
            f"program.kernels.{kernel}.parameters: {parameter} is {dtype!r}, which no number is passed as; build again"
        )
    return _NUMBERS[dtype]


def _import_driver() -> Any:
    try:
        return importlib.import_module("cuda.bindings.driver")
    except ImportError as error:
        raise ArtifactError(f"the engine needs CUDA's Python bindings ({error}): pip install cuda-python") from None
