"""The double's runtime: plans are deserialized, and run by the interpreter on the double's device memory.

Owns what stands for `Runtime`, `ICudaEngine` and `IExecutionContext`, and refuses what the real ones refuse: they
answer None or False and tell the error recorder why.
"""

from __future__ import annotations

import math
import weakref
from contextlib import suppress
from typing import Any

import numpy as np
import tensorrt_rtx_bindings as real

from tests.tensorrt.double import faults
from tests.tensorrt.double.communicators import Communicator
from tests.tensorrt.double.gpu import GPUS, Fault
from tests.tensorrt.double.plans import PlanFile
from tests.tensorrt.interpreter import Interpreter
from tests.tensorrt.number_formats import STORAGE
from trident_ensemble.contract.errors import EngineError, TridentError

#: What a run works in, for the double's plans.
_WORK_BYTES = 4096
_ALIGNMENT = 256


class Runtime:
    """See TensorRT's `Runtime`."""

    def __init__(self, logger: Any) -> None:
        self.logger = logger
        self.error_recorder: Any = None

    def deserialize_cuda_engine(self, serialized_engine: Any) -> Engine | None:
        if faults.due("deserialize_cuda_engine"):
            self.refuse("told to fail")
            return None
        try:
            return Engine(self, PlanFile.load(bytes(serialized_engine)))
        except TridentError as error:
            self.refuse(str(error))
        except Fault as fault:
            self.refuse(f"out of memory: {fault}")
        return None

    def refuse(self, why: str) -> None:
        """Say why something is not done."""
        if self.error_recorder is not None:
            self.error_recorder.report_error(real.ErrorCodeTRT.UNSPECIFIED_ERROR, why)


class Membership:
    """The way to the other ranks that share a network, once a context has been given their communicator."""

    def __init__(self) -> None:
        self.communicator: Communicator | None = None

    def collective(self, operation: str, reduction: str, array: Any) -> Any:
        """What this rank gets."""
        if self.communicator is None:
            raise EngineError("the execution context was given no communicator")
        return self.communicator.collective(operation, reduction, array)


class Engine:
    """See TensorRT's `ICudaEngine`."""

    def __init__(self, runtime: Runtime, plan: PlanFile) -> None:
        self.runtime = runtime
        self.program = plan.program
        self.profiles = plan.profiles
        self.membership = Membership()
        self.interpreter = Interpreter(plan.program, self.membership.collective)
        self._names = [*plan.program.inputs, *plan.program.outputs]
        self.num_io_tensors = len(self._names)
        self.num_optimization_profiles = len(plan.profiles)
        self.device_memory_size_v2 = _WORK_BYTES
        weights = GPUS.allocate(sum(array.nbytes for array in plan.program.constants.values()))
        weakref.finalize(self, _free_quietly, weights)

    def get_tensor_name(self, index: int) -> str:
        return self._names[index]

    def get_tensor_mode(self, name: str) -> Any:
        return real.TensorIOMode.INPUT if name in self.program.inputs else real.TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> Any:
        return getattr(real.DataType, self.program.tensors[name].kind)

    def get_tensor_shape(self, name: str) -> Any:
        return real.Dims(self.program.tensors[name].shape)

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[Any]:
        fixed = (self.program.tensors[name].shape,) * 3
        return [real.Dims(shape) for shape in self.profiles[profile_index].get(name, fixed)]

    def create_execution_context(self, strategy: Any) -> ExecutionContext | None:
        if faults.due("create_execution_context"):
            self.runtime.refuse("told to fail")
            return None
        return ExecutionContext(self, strategy == real.ExecutionContextAllocationStrategy.USER_MANAGED)


class ExecutionContext:
    """See TensorRT's `IExecutionContext`."""

    def __init__(self, engine: Engine, is_user_managed: bool) -> None:
        self.engine = engine
        self._needs_memory = is_user_managed
        self._work = (0, 0)
        self._profile = -1
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._changes = 0
        self._settled = -1

    def set_device_memory(self, memory: int, size: int) -> None:
        assert size >= self.engine.device_memory_size_v2, "too little memory to work in"
        self._work = (memory, size)

    def set_communicator(self, communicator: Any) -> bool:
        if faults.due("set_communicator"):
            return self._refuse("told to fail")
        self.engine.membership.communicator = Communicator.of(communicator)
        self.engine.membership.collective("ALL_REDUCE", "SUM", np.zeros(1, np.float32))
        return True

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        if faults.due("set_optimization_profile_async") or profile_index >= len(self.engine.profiles):
            return self._refuse(f"there is no profile {profile_index}")
        self._profile = profile_index
        self._shapes.clear()
        self._changes += 1
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        if faults.due("set_input_shape"):
            return self._refuse("told to fail")
        if name not in self.engine.program.inputs or self._profile < 0:
            return self._refuse(f"{name} is no input, or no profile is set")
        low, _, high = (tuple(bound) for bound in self.engine.get_tensor_profile_shape(name, self._profile))
        if len(shape) != len(low) or not all(a <= b <= c for a, b, c in zip(low, shape, high, strict=True)):
            return self._refuse(f"{name} {shape} is not within {low} and {high} of profile {self._profile}")
        self._shapes[name] = tuple(shape)
        self._changes += 1
        return True

    def set_tensor_address(self, name: str, memory: int) -> bool:
        if faults.due("set_tensor_address") or name not in self.engine.program.tensors or memory % _ALIGNMENT:
            return self._refuse(f"{name} at {memory:#x}: no such tensor, or not at a multiple of {_ALIGNMENT}")
        self._addresses[name] = memory
        self._changes += 1
        return True

    def is_stream_capturable(self, stream: int) -> bool:
        return not faults.due("is_stream_capturable")

    def execute_async_v3(self, stream_handle: int) -> bool:
        program = self.engine.program
        if faults.due("execute_async_v3"):
            return self._refuse("told to fail")
        missing = {*program.inputs, *program.outputs} - self._addresses.keys()
        open_shapes = {name for name in program.inputs if -1 in program.tensors[name].shape} - self._shapes.keys()
        if missing or open_shapes or (self._needs_memory and not self._work[0]):
            return self._refuse(f"no address: {missing}, no shape: {open_shapes}, memory: {self._work}")
        for step in program.steps:
            if step.operation == "KV_CACHE_UPDATE" and not self._is_aliased(str(step.inputs[0]), step.outputs[0]):
                return self._refuse(f"{step.outputs[0]} does not lie where {step.inputs[0]} does")
        is_captured = GPUS.stream(stream_handle).captured is not None
        if is_captured and self._settled != self._changes:
            GPUS.stream(stream_handle).is_spoilt = True
            return self._refuse("the first run after a change cannot be captured")
        self._settled = self._changes
        self._enqueue(stream_handle)
        return True

    def _is_aliased(self, cache: str, written: str) -> bool:
        return self._addresses[cache] == self._addresses[written]

    def _enqueue(self, stream: int) -> None:
        program, interpreter, work = self.engine.program, self.engine.interpreter, self._work
        shapes, addresses, changes = dict(self._shapes), dict(self._addresses), self._changes
        me = weakref.ref(self)
        is_captured = GPUS.stream(stream).captured is not None

        def run() -> None:
            context = me()
            if is_captured and (context is None or context._changes != changes):
                raise Fault(700, "a graph runs whose execution context was changed or freed after the capture")
            if work[0]:
                GPUS.view(*work).fill(0xEE)
            inputs = {name: _array(program, name, shapes, addresses[name]) for name in program.inputs}
            try:
                results = interpreter.evaluate(inputs)
            except TridentError as error:
                raise Fault(719, str(error)) from error
            for name in program.outputs:
                result = np.ascontiguousarray(results[name])
                if result.ctypes.data != addresses[name]:
                    GPUS.view(addresses[name], result.nbytes)[:] = result.reshape(-1).view(np.uint8)

        GPUS.enqueue(stream, run)

    def _refuse(self, why: str) -> bool:
        self.engine.runtime.refuse(why)
        return False


def _array(program: Any, name: str, shapes: dict[str, tuple[int, ...]], address: int) -> Any:
    """An input where it lies."""
    info = program.tensors[name]
    shape, dtype = shapes.get(name, info.shape), np.dtype(STORAGE[info.kind])
    return GPUS.view(address, math.prod(shape) * dtype.itemsize).view(dtype).reshape(shape)


def _free_quietly(address: int) -> None:
    with suppress(Fault):  # of a lost GPU, or one that a test has replaced
        GPUS.free(address)
