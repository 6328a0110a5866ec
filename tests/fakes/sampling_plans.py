"""The plans that sampling runs on a device, without one: device memory is host memory, a run is the interpreter's.

Work is done when the stream is waited for, as late as may be, so that what is read or overwritten too early shows.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from tests.tensorrt.interpreter import Interpreter
from tests.tensorrt.number_formats import STORAGE
from tests.tensorrt.recording import RecordingModule, RecordingNetwork, record
from trident_backend.engine.gpu.device_logits import DeviceLogits
from trident_backend.engine.host_logits import HostLogits, VocabularyKernels
from trident_backend.engine.protocol import FloatArray
from trident_backend.engine.tensorrt.plan import TensorInfo
from trident_backend.engine.tensorrt.sampling_plans import SamplingPlans
from trident_compiler.tensorrt.sampling_networks import SamplingNetwork, sampling_networks

trt: Any = pytest.importorskip("tensorrt_rtx_bindings")
_LOGGER = trt.Logger(trt.Logger.ERROR)


class LateDevice:
    """A device whose stream runs nothing before it is waited for."""

    def __init__(self) -> None:
        self._memory: dict[int, npt.NDArray[np.uint8]] = {}
        self._queue: list[Callable[[], object]] = []

    @property
    def num_allocations(self) -> int:
        return len(self._memory)

    def allocate(self, num_bytes: int) -> int:
        raw = np.full(num_bytes + 256, 0xFF, np.uint8)
        address = -(-raw.ctypes.data // 256) * 256
        self._memory[address] = raw
        return address

    def free(self, address: int) -> None:
        del self._memory[address]

    def pinned(self, num_bytes: int) -> npt.NDArray[np.uint8]:
        return np.full(num_bytes, 0xFF, np.uint8)

    def upload(self, target_address: int, source_array: npt.NDArray[Any]) -> None:
        target = at(target_address, source_array.dtype, source_array.shape)
        self.enqueue(lambda: np.copyto(target, source_array))

    def download(self, target_array: npt.NDArray[Any], source_address: int) -> None:
        source = at(source_address, target_array.dtype, target_array.shape)
        self.enqueue(lambda: np.copyto(target_array, source))

    def copy(self, target: int, source: int, num_bytes: int) -> None:
        self.enqueue(lambda: ctypes.memmove(target, source, num_bytes))

    def fill_nan(self, address: int, num_bytes: int) -> None:
        self.enqueue(lambda: ctypes.memset(address, 0xFF, num_bytes))

    def enqueue(self, work: Callable[[], object]) -> None:
        self._queue.append(work)

    def synchronize(self) -> None:
        for work in self._queue:
            work()
        self._queue.clear()


class InterpretedPlan:
    """A network that holds its callers to its profile."""

    def __init__(self, network: SamplingNetwork, device: LateDevice) -> None:
        builder = trt.Builder(_LOGGER)
        recorded = RecordingNetwork(builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)))
        network.write(RecordingModule(trt), recorded)
        self._interpreter = Interpreter(record(trt, recorded))
        self._profile = network.profile
        self._device = device
        program = self._interpreter.program
        self.tensors = {
            name: TensorInfo(name in program.inputs, program.tensors[name].kind.lower(), program.tensors[name].shape)
            for name in (*program.inputs, *program.outputs)
        }
        self.num_runs = 0

    def bounds(self, name: str, profile: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        assert profile == 0
        smallest, _, largest = self._profile[name]
        return smallest, largest

    def run(self, shapes: Mapping[str, tuple[int, ...]], addresses: Mapping[str, int]) -> None:
        self.num_runs += 1
        program = self._interpreter.program
        assert shapes.keys() == set(program.inputs)
        assert addresses.keys() == self.tensors.keys()
        for name, shape in shapes.items():
            smallest, largest = self.bounds(name, 0)
            assert all(low <= size <= high for low, size, high in zip(smallest, shape, largest, strict=True)), name
        assert all(address % 256 == 0 for address in addresses.values())
        inputs = {
            name: at(addresses[name], STORAGE[program.tensors[name].kind], shape) for name, shape in shapes.items()
        }

        def compute() -> None:
            for name, result in self._interpreter.evaluate(inputs).items():
                at(addresses[name], result.dtype, result.shape)[...] = result

        self._device.enqueue(compute)

    def close(self) -> None:
        """Nothing to free."""


class SamplingDevice:
    """An engine's plans on a device of their own.

    Args:
        vocab_size: V.
        max_rows: of the buffer that the logits lie in.
    """

    def __init__(self, vocab_size: int, max_rows: int) -> None:
        self.device = LateDevice()
        self.interpreted = {
            network.name: InterpretedPlan(network, self.device) for network in sampling_networks(vocab_size, max_rows)
        }
        standing_in: Any = self.interpreted, self.device
        self.plans = SamplingPlans(*standing_in)
        self._shape = max_rows, vocab_size
        self._address = self.device.allocate(max_rows * vocab_size * 4)

    def logits(self, array: FloatArray, seed: int = 0) -> DeviceLogits:
        """Put a step's logits somewhere in the buffer, whose other rows are no numbers."""
        places = np.random.default_rng(seed).permutation(self._shape[0])[: len(array)].astype(np.int32)
        buffer = at(self._address, np.float32, self._shape)
        buffer[...] = np.nan
        buffer[places] = array
        return DeviceLogits(self.plans, self._address, places)


def on_host(array: FloatArray, kernels: VocabularyKernels) -> HostLogits:
    """The same on the host, on a copy."""
    return HostLogits(array.copy(), kernels)


def at(address: int, dtype: npt.DTypeLike, shape: tuple[int, ...]) -> npt.NDArray[Any]:
    """The array at an address."""
    memory: Any = (ctypes.c_uint8 * (int(np.prod(shape)) * np.dtype(dtype).itemsize)).from_address(address)
    array: npt.NDArray[Any] = np.frombuffer(memory, dtype).reshape(shape)
    return array
