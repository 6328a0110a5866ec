"""The CUDA runtime's calls that the host uses, on host memory; named and shaped as cuda-python's.

What a call means, CUDA's documentation says.
"""

# ruff: noqa: ARG001, N801, N802, N803, N815, N816, PLR0917 (names and arguments are CUDA's)

from __future__ import annotations

from enum import IntEnum
from types import SimpleNamespace
from typing import Any

from tests.tensorrt.double import faults
from tests.tensorrt.double.copies import copy_rows
from tests.tensorrt.double.gpu import GPUS, PINNED, Fault, Stream, Work
from tests.tensorrt.double.statuses import answering

cudaHostAllocDefault = 0
cudaStreamNonBlocking = 1
cudaDeviceScheduleBlockingSync = 4


class cudaError_t(IntEnum):
    """The codes that the double gives."""

    cudaSuccess = 0
    cudaErrorInvalidValue = 1
    cudaErrorMemoryAllocation = 2
    cudaErrorInvalidDevice = 101
    cudaErrorInvalidResourceHandle = 400
    cudaErrorNotReady = 600
    cudaErrorIllegalAddress = 700
    cudaErrorMisalignedAddress = 716
    cudaErrorLaunchFailure = 719
    cudaErrorStreamCaptureUnsupported = 900
    cudaErrorStreamCaptureInvalidated = 901


class cudaMemcpyKind(IntEnum):
    """Directions."""

    cudaMemcpyHostToHost = 0
    cudaMemcpyHostToDevice = 1
    cudaMemcpyDeviceToHost = 2
    cudaMemcpyDeviceToDevice = 3


class cudaStreamCaptureMode(IntEnum):
    """What else is forbidden during a capture."""

    cudaStreamCaptureModeGlobal = 0
    cudaStreamCaptureModeThreadLocal = 1
    cudaStreamCaptureModeRelaxed = 2


class cudaDeviceAttr(IntEnum):
    """Properties."""

    cudaDevAttrMultiProcessorCount = 16
    cudaDevAttrComputeCapabilityMajor = 75
    cudaDevAttrComputeCapabilityMinor = 76


_FROM_DEVICE = {cudaMemcpyKind.cudaMemcpyDeviceToHost, cudaMemcpyKind.cudaMemcpyDeviceToDevice}
_TO_DEVICE = {cudaMemcpyKind.cudaMemcpyHostToDevice, cudaMemcpyKind.cudaMemcpyDeviceToDevice}
_call = answering(cudaError_t)


@_call
def cudaGetDeviceCount() -> tuple[Any, ...]:
    return (GPUS.num_devices,)


@_call
def cudaSetDevice(device: int) -> tuple[Any, ...]:
    if not 0 <= device < GPUS.num_devices:
        raise Fault(101, f"no GPU {device}")
    GPUS.current = device
    return ()


@_call
def cudaSetDeviceFlags(flags: int) -> tuple[Any, ...]:
    return ()


@_call
def cudaDeviceGetAttribute(attr: cudaDeviceAttr, device: int) -> tuple[Any, ...]:
    major, minor = GPUS.capability
    known = {
        cudaDeviceAttr.cudaDevAttrMultiProcessorCount: GPUS.num_multiprocessors,
        cudaDeviceAttr.cudaDevAttrComputeCapabilityMajor: major,
        cudaDeviceAttr.cudaDevAttrComputeCapabilityMinor: minor,
    }
    return (known[attr],)


def cudaGetErrorString(error: cudaError_t) -> tuple[Any, ...]:
    return cudaError_t.cudaSuccess, error.name.removeprefix("cudaError").encode()


@_call
def cudaMemGetInfo() -> tuple[Any, ...]:
    return GPUS.free_bytes(), GPUS.total_bytes


@_call
def cudaGetDeviceProperties(device: int) -> tuple[Any, ...]:
    return (SimpleNamespace(totalGlobalMem=GPUS.total_bytes),)


@_call
def cudaMalloc(size: int) -> tuple[Any, ...]:
    GPUS.forbid_capture("cudaMalloc")
    return (GPUS.allocate(size),)


@_call
def cudaFree(devPtr: int) -> tuple[Any, ...]:
    GPUS.forbid_capture("cudaFree")
    GPUS.free(devPtr)
    return ()


@_call
def cudaHostAlloc(size: int, flags: int) -> tuple[Any, ...]:
    return (GPUS.allocate(size, PINNED),)


@_call
def cudaFreeHost(ptr: int) -> tuple[Any, ...]:
    GPUS.free(ptr, PINNED)
    return ()


@_call
def cudaStreamCreateWithFlags(flags: int) -> tuple[Any, ...]:
    handle = GPUS.handle()
    GPUS.streams[handle] = Stream(GPUS.current)
    return (handle,)


@_call
def cudaStreamDestroy(stream: int) -> tuple[Any, ...]:
    GPUS.run(GPUS.stream(stream))
    del GPUS.streams[stream]
    return ()


@_call
def cudaStreamSynchronize(stream: int) -> tuple[Any, ...]:
    GPUS.forbid_capture("cudaStreamSynchronize")
    GPUS.run(GPUS.stream(stream))
    return ()


@_call
def cudaMemcpyAsync(dst: int, src: int, count: int, kind: cudaMemcpyKind, stream: int) -> tuple[Any, ...]:
    copy_rows((dst, count, kind in _TO_DEVICE), (src, count, kind in _FROM_DEVICE), count, 1, stream)
    return ()


@_call
def cudaMemcpy2DAsync(
    dst: int, dpitch: int, src: int, spitch: int, width: int, height: int, kind: cudaMemcpyKind, stream: int
) -> tuple[Any, ...]:
    copy_rows((dst, dpitch, kind in _TO_DEVICE), (src, spitch, kind in _FROM_DEVICE), width, height, stream)
    return ()


@_call
def cudaMemsetAsync(devPtr: int, value: int, count: int, stream: int) -> tuple[Any, ...]:
    GPUS.enqueue(stream, lambda: GPUS.view(devPtr, count).fill(value))
    return ()


@_call
def cudaMemset2DAsync(devPtr: int, pitch: int, value: int, width: int, height: int, stream: int) -> tuple[Any, ...]:
    if width > pitch:
        raise Fault(1, f"rows of {width} bytes, {pitch} bytes apart")

    def work() -> None:
        places = GPUS.view(devPtr, (height - 1) * pitch + width)
        for row in range(height):
            places[row * pitch : row * pitch + width].fill(value)

    GPUS.enqueue(stream, work)
    return ()


@_call
def cudaStreamBeginCapture(stream: int, mode: cudaStreamCaptureMode) -> tuple[Any, ...]:
    found = GPUS.stream(stream)
    if found.captured is not None:
        raise Fault(1, "the stream is captured already")
    found.captured, found.is_spoilt = [], False
    return ()


@_call
def cudaStreamEndCapture(stream: int) -> tuple[Any, ...]:
    found = GPUS.stream(stream)
    if found.captured is None:
        raise Fault(1, "the stream is not captured")
    captured, found.captured = found.captured, None
    if found.is_spoilt or faults.due("a captured stream"):
        raise Fault(901, "the capture was spoilt")
    return (_keep(captured),)


@_call
def cudaGraphInstantiate(graph: int, flags: int) -> tuple[Any, ...]:
    return (_keep(_graph(graph)),)


@_call
def cudaGraphLaunch(graphExec: int, stream: int) -> tuple[Any, ...]:
    for work in _graph(graphExec):
        GPUS.enqueue(stream, work)
    return ()


@_call
def cudaGraphDestroy(graph: int) -> tuple[Any, ...]:
    _graph(graph)
    del GPUS.graphs[graph]
    return ()


@_call
def cudaGraphExecDestroy(graphExec: int) -> tuple[Any, ...]:
    GPUS.run_all()
    _graph(graphExec)
    del GPUS.graphs[graphExec]
    return ()


def _keep(captured: list[Work]) -> int:
    handle = GPUS.handle()
    GPUS.graphs[handle] = captured
    return handle


def _graph(handle: int) -> list[Work]:
    if handle not in GPUS.graphs:
        raise Fault(400, f"no graph {handle}")
    return GPUS.graphs[handle]
