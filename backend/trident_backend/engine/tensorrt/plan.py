"""A plan of TensorRT, ready to run: the deserialized engine and its execution contexts.

Owns both, and what TensorRT says when something fails. Never knows what a tensor means: it has a name, a type and a
shape.
"""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from trident_backend.engine.gpu.device import Device
from trident_ensemble.contract.errors import ArtifactError, EngineError

Shape = tuple[int, ...]


@dataclass(frozen=True)
class TensorInfo:
    """An input or output: -1 in the shape is what a call chooses; the type is named as TensorRT does, in lower case."""

    is_input: bool
    dtype: str
    shape: Shape


class Plan:
    """One plan on one device.

    All plans of a device share the memory that a run works in: they run one after another, on its one stream.

    Args:
        path: the plan's file.
        device: where it runs; its stream, too.
        runtime_module: `tensorrt`, `tensorrt_rtx`, or what has the same interface.

    Raises:
        ArtifactError: the plan cannot be read.
    """

    def __init__(self, path: Path, device: Device, runtime_module: Any) -> None:
        self.device = device
        #: An NCCL communicator's capsule, for the contexts of a network that is divided among devices.
        self.communicator: object = None
        self._trt = runtime_module
        self._messages = _error_recorder(runtime_module)
        self._runtime = runtime_module.Runtime(_logger(runtime_module))
        self._runtime.error_recorder = self._messages
        self._engine = _deserialize(path, self._runtime)
        if self._engine is None:
            raise ArtifactError(f"{path.name}: {runtime_module.__name__} cannot read it{self._said()}; build again")
        self._work_bytes = int(self._engine.device_memory_size_v2)
        device.reserve_work(self._work_bytes)
        self._contexts: dict[int, Context] = {}

    @property
    def num_profiles(self) -> int:
        """The number of optimization profiles."""
        return int(self._engine.num_optimization_profiles)

    @property
    def tensors(self) -> dict[str, TensorInfo]:
        """All inputs and outputs, by name."""
        engine = self._engine
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        return {
            name: TensorInfo(
                engine.get_tensor_mode(name) == self._trt.TensorIOMode.INPUT,
                engine.get_tensor_dtype(name).name.lower(),
                tuple(engine.get_tensor_shape(name)),
            )
            for name in names
        }

    def bounds(self, name: str, profile: int) -> tuple[Shape, Shape]:
        """Return the smallest and the largest shape of an input in a profile."""
        smallest, _, largest = self._engine.get_tensor_profile_shape(name, profile)
        return tuple(smallest), tuple(largest)

    def run(self, shapes: Mapping[str, Shape], addresses: Mapping[str, int], profile: int = 0) -> None:
        """Enqueue one run.

        Args:
            shapes: of every input whose shape is not fixed.
            addresses: of every input and output, at multiples of 256 bytes; what is the same memory must be neither
                read nor written by others before the stream has come so far.
            profile: whose bounds the shapes keep.

        Raises:
            EngineError: TensorRT refuses.
        """
        if profile not in self._contexts:
            self._contexts[profile] = self.context(profile, fixed_shapes=False)
        self._contexts[profile].run(shapes, addresses)

    def context(self, profile: int, *, fixed_shapes: bool) -> Context:
        """Return a new context.

        Args:
            profile: whose bounds its shapes keep.
            fixed_shapes: they stay the same, so that kernels for these very shapes are worth their compilation.

        Raises:
            EngineError: TensorRT refuses, or there is no memory.
        """
        context = self._must("create_execution_context", _create_context(self._trt, self._engine, fixed_shapes))
        context.set_device_memory(self.device.work(), self._work_bytes)
        if self.communicator is not None:
            self._must("set_communicator", context.set_communicator(self.communicator))
        stream = self.device.stream
        self._must("set_optimization_profile_async", context.set_optimization_profile_async(profile, stream))
        return Context(context, self.device, self._must)

    def close(self) -> None:
        """Free everything; contexts first, as they refer to the engine."""
        for context in self._contexts.values():
            context.close()
        self._contexts.clear()
        self._engine = self._runtime = None

    def _must(self, call: str, outcome: Any) -> Any:
        if outcome is None or outcome is False:
            raise EngineError(f"GPU {self.device.ordinal}: TensorRT's {call} failed{self._said()}")
        return outcome

    def _said(self) -> str:
        """Return the errors that TensorRT has reported since the last call, as the end of a sentence."""
        texts = [text for _, text in self._messages.errors]
        self._messages.clear()
        return ": " + "; ".join(texts) if texts else ""


class Context:
    """One execution context: the shapes and addresses of a run, which stay until they are changed."""

    def __init__(self, context: Any, device: Device, must: Any) -> None:
        self._context = context
        self._device = device
        self._must = must
        self._shapes: dict[str, Shape] = {}
        self._addresses: dict[str, int] = {}

    def run(self, shapes: Mapping[str, Shape], addresses: Mapping[str, int]) -> None:
        """Enqueue one run, as `Plan.run` does."""
        for name, shape in shapes.items():
            if self._shapes.get(name) != shape:
                self._must(f"set_input_shape({name}, {shape})", self._context.set_input_shape(name, shape))
                self._shapes[name] = shape
        for name, address in addresses.items():
            if self._addresses.get(name) != address:
                self._must(f"set_tensor_address({name})", self._context.set_tensor_address(name, address))
                self._addresses[name] = address
        self._must("execute_async_v3", self._context.execute_async_v3(self._device.stream))

    @property
    def is_capturable(self) -> bool:
        """Whether a run with these shapes can be captured in a graph, as far as TensorRT can tell."""
        ask = getattr(self._context, "is_stream_capturable", None)  # only newer versions can be asked
        return ask is None or bool(ask(self._device.stream))

    def close(self) -> None:
        """Free the execution context."""
        self._context = None


def _deserialize(path: Path, runtime: Any) -> Any:
    """Return the engine, or None; the file is mapped, not read into memory."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return runtime.deserialize_cuda_engine(content)
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path.name}: cannot be read: {error}") from None


def _create_context(trt: Any, engine: Any, fixed_shapes: bool) -> Any:
    """Return a context without memory of its own."""
    user_managed = trt.ExecutionContextAllocationStrategy.USER_MANAGED
    kinds = getattr(trt, "DynamicShapesKernelSpecializationStrategy", None)
    if kinds is None:
        return engine.create_execution_context(user_managed)
    # TensorRT-RTX compiles kernels for shapes as they come. Captured generation has few, compiled before the first
    # request; prompts come in all of them, and a compiler beside each step would take more than it gives.
    config = engine.create_runtime_config()
    config.set_execution_context_allocation_strategy(user_managed)
    config.dynamic_shapes_kernel_specialization_strategy = kinds.EAGER if fixed_shapes else kinds.NONE
    return engine.create_execution_context(config)


@cache
def _logger(trt: Any) -> Any:
    """Return the process's one logger: TensorRT keeps the first that it is given, and uses it for ever."""
    return trt.Logger(trt.Logger.WARNING)


def _error_recorder(trt: Any) -> Any:
    """Return a collector of TensorRT's errors; its base class belongs to the module."""

    class ErrorRecorder(trt.IErrorRecorder):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.errors: list[tuple[Any, str]] = []

        def report_error(self, code: Any, text: str) -> bool:
            self.errors.append((code, text))
            return True

        def num_errors(self) -> int:
            return len(self.errors)

        def get_error_code(self, index: int) -> Any:
            return self.errors[index][0]

        def get_error_desc(self, index: int) -> str:
            return self.errors[index][1]

        def has_overflowed(self) -> bool:
            return False

        def clear(self) -> None:
            self.errors.clear()

    return ErrorRecorder()
