"""The CUDA driver's calls that the host uses: kernels are loaded, and launched as work of the double's streams.

Owns what a launch must look like. What a call means, CUDA's documentation says; which types of arguments cuda-python
takes was tried with its release 13.
"""

# ruff: noqa: ARG001, N801, N802, N803, PLR0917 (names and arguments are CUDA's)

from __future__ import annotations

import ctypes
import operator
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from tests.tensorrt.double.cubins import Cubin, report
from tests.tensorrt.double.gpu import GPUS, Fault
from tests.tensorrt.double.statuses import answering


class CUresult(IntEnum):
    """The codes that the double gives."""

    CUDA_SUCCESS = 0
    CUDA_ERROR_INVALID_VALUE = 1
    CUDA_ERROR_OUT_OF_MEMORY = 2
    CUDA_ERROR_INVALID_DEVICE = 101
    CUDA_ERROR_INVALID_IMAGE = 200
    CUDA_ERROR_NO_BINARY_FOR_GPU = 209
    CUDA_ERROR_INVALID_HANDLE = 400
    CUDA_ERROR_NOT_FOUND = 500
    CUDA_ERROR_ILLEGAL_ADDRESS = 700
    CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES = 701
    CUDA_ERROR_MISALIGNED_ADDRESS = 716
    CUDA_ERROR_LAUNCH_FAILED = 719
    CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED = 900
    CUDA_ERROR_STREAM_CAPTURE_INVALIDATED = 901


class CUfunction_attribute(IntEnum):
    """Properties of kernels."""

    CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES = 8


class CUfunction(int):
    """A kernel in the current context."""


#: Dynamic shared memory of a block: without asking for more, and at most, by capability.
_SHARED_BYTES = 48 * 1024
_MOST_SHARED_BYTES = {(8, 0): 166912, (8, 6): 101376, (8, 9): 101376, (9, 0): 232448, (10, 0): 232448, (12, 0): 101376}
_MOST_BLOCKS = (2**31 - 1, 65535, 65535)
#: The two addresses that Triton adds to every kernel's parameters.
_TRITONS_OWN = (("global_scratch", "*i8"), ("profile_scratch", "*i8"))
_ADDRESS = frozenset({ctypes.c_void_p, ctypes.c_uint64})
_NUMBERS: dict[str, type[Any]] = {
    "i1": ctypes.c_bool,
    "i8": ctypes.c_int8,
    "i16": ctypes.c_int16,
    "i32": ctypes.c_int32,
    "i64": ctypes.c_int64,
    "fp32": ctypes.c_float,
    "fp64": ctypes.c_double,
}
_call = answering(CUresult)
#: Of functions without a result.
_plain = answering(CUresult, ())


@dataclass
class _Loaded:
    """A kernel, how much shared memory it was allowed, and whether it is on the device, as what was launched is."""

    cubin: Cubin
    most_shared_bytes: int = _SHARED_BYTES
    is_on_device: bool = False


def cuGetErrorString(error: CUresult) -> tuple[Any, ...]:
    return CUresult.CUDA_SUCCESS, error.name.removeprefix("CUDA_ERROR_").lower().replace("_", " ").encode()


def cuGetErrorName(error: CUresult) -> tuple[Any, ...]:
    return CUresult.CUDA_SUCCESS, error.name.encode()


@_call
def cuLibraryLoadData(
    code: bytes,
    jitOptions: list[Any] | None,
    jitOptionsValues: list[Any] | None,
    numJitOptions: int,
    libraryOptions: list[Any] | None,
    libraryOptionValues: list[Any] | None,
    numLibraryOptions: int,
) -> tuple[Any, ...]:
    handle = GPUS.handle()
    GPUS.libraries[handle] = _Loaded(Cubin.load(bytes(code)))
    return (handle,)


@_plain
def cuLibraryUnload(library: int) -> tuple[Any, ...]:
    _loaded(library)
    GPUS.run_all()
    del GPUS.libraries[library]
    return ()


@_call
def cuLibraryGetKernel(library: int, name: bytes) -> tuple[Any, ...]:
    if not isinstance(name, bytes):
        raise TypeError(f"expected bytes, {type(name).__name__} found")
    if _loaded(library).cubin.entry != name.decode():
        raise Fault(CUresult.CUDA_ERROR_NOT_FOUND, f"no kernel {name!r}")
    return (library,)


@_plain
def cuKernelSetAttribute(attrib: CUfunction_attribute, val: int, kernel: int, dev: int) -> tuple[Any, ...]:
    most = _MOST_SHARED_BYTES.get(GPUS.capability, _SHARED_BYTES)
    if not 0 <= dev < GPUS.num_devices:
        raise Fault(CUresult.CUDA_ERROR_INVALID_DEVICE, f"no GPU {dev}")
    if attrib != CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES or not 0 <= val <= most:
        report(f"attribute {attrib} cannot be {val}; shared memory is {most} bytes")
        raise Fault(CUresult.CUDA_ERROR_INVALID_VALUE, "an attribute")
    _loaded(kernel).most_shared_bytes = val
    return ()


@_call
def cuKernelGetFunction(kernel: int) -> tuple[Any, ...]:
    _loaded(kernel)
    return (CUfunction(kernel),)


@_plain
def cuFuncLoad(function: CUfunction) -> tuple[Any, ...]:
    if not isinstance(function, CUfunction):
        raise TypeError(f"expected CUfunction, {type(function).__name__} found")
    GPUS.forbid_capture("a function is loaded")
    _loaded(function).is_on_device = True
    return ()


@_plain
def cuLaunchKernel(
    f: int,
    gridDimX: int,
    gridDimY: int,
    gridDimZ: int,
    blockDimX: int,
    blockDimY: int,
    blockDimZ: int,
    sharedMemBytes: int,
    hStream: int,
    kernelParams: tuple[tuple[Any, ...], tuple[Any, ...]] | int,
    extra: int,
) -> tuple[Any, ...]:
    loaded, grid = _loaded(f), (gridDimX, gridDimY, gridDimZ)
    cubin = loaded.cubin
    wrong = [
        not all(isinstance(size, int) and 0 < size <= most for size, most in zip(grid, _MOST_BLOCKS, strict=True)),
        (blockDimX, blockDimY, blockDimZ) != (cubin.num_threads, 1, 1),
        sharedMemBytes != cubin.shared_bytes,
        sharedMemBytes > loaded.most_shared_bytes,
        extra != 0,
    ]
    if any(wrong):
        report(f"{cubin.entry}: grid {grid}, {blockDimX} threads, {sharedMemBytes} bytes: not as it was compiled")
        raise Fault(CUresult.CUDA_ERROR_INVALID_VALUE, "a launch")
    parameters = (*cubin.parameters, *_TRITONS_OWN)
    packed = isinstance(kernelParams, tuple)
    given = _packed(kernelParams, parameters) if packed else _pointed(kernelParams, parameters)  # type: ignore[arg-type]
    if any(given.pop(name) for name, _ in _TRITONS_OWN):
        raise TypeError(f"{cubin.entry}: Triton's own addresses are those of nothing")

    if not loaded.is_on_device:
        # CUDA loads kernels when they are needed, which it may not be able to do while a stream is captured.
        GPUS.forbid_capture(f"{cubin.entry} is launched for the first time")
        loaded.is_on_device = True

    def work() -> None:
        if f not in GPUS.libraries:
            raise Fault(CUresult.CUDA_ERROR_LAUNCH_FAILED, f"{cubin.entry} runs after it was unloaded")
        cubin.run(grid, given)

    GPUS.enqueue(int(hStream), work)
    return ()


def _loaded(handle: int) -> _Loaded:
    found = GPUS.libraries.get(int(handle))
    if not isinstance(found, _Loaded):
        raise Fault(CUresult.CUDA_ERROR_INVALID_HANDLE, f"{handle} is no library")
    return found


def _packed(
    given: tuple[tuple[Any, ...], tuple[Any, ...]], parameters: tuple[tuple[str, str], ...]
) -> dict[str, int | float]:
    """Return the arguments by name, from values and their types in the order of the call."""
    values, kinds = given
    if not len(values) == len(kinds) == len(parameters):
        raise TypeError(f"{len(values)} values and {len(kinds)} types for {len(parameters)} parameters")
    found = {}
    for value, kind, (name, dtype) in zip(values, kinds, parameters, strict=True):
        if kind not in (_ADDRESS if dtype.startswith("*") else {_NUMBERS[dtype]}):
            raise TypeError(f"{name} is {dtype}, not {kind.__name__}")
        found[name] = _taken(value.value or 0 if isinstance(value, kind) else value, kind)
    return found


def _taken(number: Any, kind: type[Any]) -> int | float:
    """Return a number as the type holds it, or refuse it as cuda-python does."""
    if kind is ctypes.c_float:
        return float(kind(float(number)).value)
    if kind in _ADDRESS and not isinstance(number, int):
        raise TypeError(f"an address is of type {type(number).__name__}: cuda-python takes those of Python and ctypes")
    whole = operator.index(number)
    if int(kind(whole).value or 0) != whole:
        raise OverflowError(f"{whole} is too large for {kind.__name__}")
    return whole


def _pointed(address: int, parameters: tuple[tuple[str, str], ...]) -> dict[str, int | float]:
    """Return the arguments by name, from an array of their addresses, which is read before the call returns."""
    places = (ctypes.c_void_p * len(parameters)).from_address(address)
    kinds: list[type[Any]] = [ctypes.c_void_p if dtype.startswith("*") else _NUMBERS[dtype] for _, dtype in parameters]
    named = zip(parameters, kinds, places, strict=True)
    return {name: kind.from_address(place).value or 0 for (name, _), kind, place in named}
