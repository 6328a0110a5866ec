"""One GPU as the host uses it: memory, one stream, and graphs of what was enqueued on it.

Owns the calls of the CUDA runtime and their errors. Everything is enqueued and returns at once, but for `synchronize`,
during which other Python threads run. Never knows a network.
"""

from __future__ import annotations

import ctypes
import importlib
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
import numpy.typing as npt

from trident_ensemble.contract.errors import ArtifactError, EngineError

Bytes = npt.NDArray[np.uint8]


class DeviceMemoryError(EngineError):
    """There was too little memory on the GPU."""


class Device:
    """A GPU and a stream on it; used by one thread at a time.

    Args:
        ordinal: which GPU, as CUDA counts them.

    Raises:
        ArtifactError: there is no such GPU, no driver for it, or cuda-python is not installed.
    """

    def __init__(self, ordinal: int) -> None:
        self._cuda = _import_cuda()
        self.ordinal = ordinal
        self._pinned: list[int] = []
        #: Bytes that everything which needs it works in: it runs one after another, so that one memory serves all.
        self.work_bytes = 1
        self._work = 0
        try:
            self._call("cudaSetDevice", ordinal)
            # A thread that spins while a step computes takes a core from those that answer.
            self._call("cudaSetDeviceFlags", self._cuda.cudaDeviceScheduleBlockingSync)
            self._stream = self._call("cudaStreamCreateWithFlags", self._cuda.cudaStreamNonBlocking)
        except EngineError as error:
            raise ArtifactError(f"GPU {ordinal} cannot be used: {error}") from None
        self.stream = int(self._stream)

    @property
    def capability(self) -> tuple[int, int]:
        """The GPU's compute capability, major and minor."""
        kinds = self._cuda.cudaDeviceAttr
        wanted = (kinds.cudaDevAttrComputeCapabilityMajor, kinds.cudaDevAttrComputeCapabilityMinor)
        major, minor = (int(self._call("cudaDeviceGetAttribute", kind, self.ordinal)) for kind in wanted)
        return major, minor

    @property
    def num_multiprocessors(self) -> int:
        """The number of the GPU's multiprocessors, each of which runs several programs at a time."""
        kind = self._cuda.cudaDeviceAttr.cudaDevAttrMultiProcessorCount
        return int(self._call("cudaDeviceGetAttribute", kind, self.ordinal))

    def select(self) -> None:
        """Make this the calling thread's GPU; every thread but the one that made the object calls it first."""
        self._call("cudaSetDevice", self.ordinal)

    def free_bytes(self) -> int:
        """Return the free bytes of the GPU's memory."""
        free, _ = self._call("cudaMemGetInfo")
        return int(free)

    def allocate(self, num_bytes: int) -> int:
        """Allocate memory on the device and return its address, a multiple of 256; its contents are undefined."""
        return int(self._call("cudaMalloc", num_bytes))

    def free(self, address: int) -> None:
        """Free what `allocate` gave."""
        self._call("cudaFree", address)

    def reserve_work(self, num_bytes: int) -> None:
        """Make the work space at least so large; call it before `work`."""
        assert not self._work or num_bytes <= self.work_bytes, "the work space has its size before it is used"
        self.work_bytes = max(self.work_bytes, num_bytes)

    def work(self) -> int:
        """Return the address of the work space, which is allocated at the first call and lives until `close`."""
        if not self._work:
            self._work = self.allocate(self.work_bytes)
        return self._work

    def pinned(self, num_bytes: int) -> Bytes:
        """Allocate host memory that the GPU reads and writes itself; it lives until `free_pinned` or `close`."""
        address = int(self._call("cudaHostAlloc", num_bytes, self._cuda.cudaHostAllocDefault))
        self._pinned.append(address)
        return np.ctypeslib.as_array((ctypes.c_uint8 * num_bytes).from_address(address))

    def free_pinned(self, memory: Bytes) -> None:
        """Free the whole of what `pinned` gave; nothing that was enqueued may still read or write it."""
        address = memory.ctypes.data
        self._call("cudaFreeHost", address)
        self._pinned.remove(address)

    def upload(self, target_address: int, source_array: npt.NDArray[Any]) -> None:
        """Copy a contiguous array to the device; pinned memory must not change before the next `synchronize`."""
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
        address, size = _contiguous(source_array)
        self._call("cudaMemcpyAsync", target_address, address, size, kind, self._stream)

    def download(self, target_array: npt.NDArray[Any], source_address: int) -> None:
        """Copy from the device into a contiguous array, which holds it after the next `synchronize`."""
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
        address, size = _contiguous(target_array)
        self._call("cudaMemcpyAsync", address, source_address, size, kind, self._stream)

    def copy(self, target: int, source: int, num_bytes: int) -> None:
        """Copy on the device; the two must not overlap."""
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        self._call("cudaMemcpyAsync", target, source, num_bytes, kind, self._stream)

    def copy_2d(self, target: int, source: int, pitch: int, width: int, height: int) -> None:
        """Copy `height` rows of `width` bytes on the device; rows begin `pitch` bytes apart, on both sides."""
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        self._call("cudaMemcpy2DAsync", target, pitch, source, pitch, width, height, kind, self._stream)

    def zero(self, address: int, num_bytes: int) -> None:
        """Fill with zeros."""
        self._call("cudaMemsetAsync", address, 0, num_bytes, self._stream)

    def fill_nan(self, address: int, num_bytes: int) -> None:
        """Set every bit, so that all floating-point numbers are NaN."""
        self._call("cudaMemsetAsync", address, 0xFF, num_bytes, self._stream)

    def zero_2d(self, address: int, pitch: int, width: int, height: int) -> None:
        """Fill `height` rows of `width` bytes with zeros; they begin `pitch` bytes apart."""
        self._call("cudaMemset2DAsync", address, pitch, 0, width, height, self._stream)

    def synchronize(self) -> None:
        """Wait for all that was enqueued.

        Raises:
            EngineError: something of it failed.
        """
        self._call("cudaStreamSynchronize", self._stream)

    def capture(self, enqueue: Callable[[], None]) -> Any:
        """Record what `enqueue` enqueues, instead of running it; it can be launched any number of times.

        Raises:
            EngineError: it failed, or cannot be recorded; the stream runs again what is enqueued.
        """
        mode = self._cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._call("cudaStreamBeginCapture", self._stream, mode)
        try:
            enqueue()
        except BaseException:
            with suppress(EngineError):
                self._call("cudaGraphDestroy", self._call("cudaStreamEndCapture", self._stream))
            raise
        graph = self._call("cudaStreamEndCapture", self._stream)
        try:
            instantiated = self._call("cudaGraphInstantiate", graph, 0)
        finally:
            with suppress(EngineError):  # what is not freed here is freed with the process
                self._call("cudaGraphDestroy", graph)
        return instantiated

    def launch(self, graph: Any) -> None:
        """Enqueue what was recorded."""
        self._call("cudaGraphLaunch", graph, self._stream)

    def free_graph(self, graph: Any) -> None:
        """Free what `capture` gave."""
        self._call("cudaGraphExecDestroy", graph)

    def close(self) -> None:
        """Free the work space, the pinned memory and the stream; other memory is its allocator's to free."""
        if self._work:
            address, self._work = self._work, 0
            self.free(address)
        while self._pinned:
            self._call("cudaFreeHost", self._pinned.pop())
        self._call("cudaStreamDestroy", self._stream)

    def _call(self, name: str, *arguments: Any) -> Any:
        """Call CUDA, and return its one result, all of several, or None."""
        status, *results = getattr(self._cuda, name)(*arguments)
        if status != self._cuda.cudaError_t.cudaSuccess:
            _, text = self._cuda.cudaGetErrorString(status)
            kind = DeviceMemoryError if status == self._cuda.cudaError_t.cudaErrorMemoryAllocation else EngineError
            raise kind(f"GPU {self.ordinal}: {name} failed: {text.decode()} ({status.name})")
        return results[0] if len(results) == 1 else results or None


def _import_cuda() -> Any:
    try:
        return importlib.import_module("cuda.bindings.runtime")
    except ImportError as error:
        raise ArtifactError(f"the engine needs CUDA's Python bindings ({error}): pip install cuda-python") from None


def _contiguous(array: npt.NDArray[Any]) -> tuple[int, int]:
    assert array.flags.c_contiguous, "only whole arrays are copied"
    return array.ctypes.data, array.nbytes
