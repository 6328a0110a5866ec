"""The plans of an engine that sampling runs on the device, and the little memory that goes to them and back.

Owns the plans, their limits, the arrays on their way, the rows that are being changed and the table of penalties. Never
owns a step's logits, which it knows by their address alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from trident_backend.engine.gpu.device import Device
from trident_backend.engine.gpu.names import ALIGNMENT, Operand, Sampling
from trident_backend.engine.gpu.penalty_rows import PenaltyRows
from trident_backend.engine.tensorrt.names import LOGITS
from trident_backend.engine.tensorrt.plan import Plan, TensorInfo
from trident_ensemble.contract.errors import ArtifactError

Array = npt.NDArray[Any]
Arrays = dict[str, Array]

#: Tensors that stay on the device: the step's logits, the rows as a plan changed them, and the table of penalties.
_LARGE = frozenset({LOGITS, Operand.CHANGED, Operand.TABLE})
_TYPES: Mapping[str, npt.DTypeLike] = {"float": np.float32, "int32": np.int32, "uint8": np.uint8}


class _Operation(NamedTuple):
    """A plan, its small inputs and outputs, and those that stay on the device.

    The first axis of all outputs is as long as that of the input `leader`.
    """

    plan: Plan
    inputs: dict[str, TensorInfo]
    outputs: dict[str, TensorInfo]
    large: frozenset[str]
    leader: str

    @property
    def num_bytes(self) -> int:
        """Bytes of the largest inputs and outputs."""
        sizes = {key: _size(self.plan.bounds(key, 0)[1], info.dtype) for key, info in self.inputs.items()}
        most = self.plan.bounds(self.leader, 0)[1][0]
        sizes |= {key: _size((most, *info.shape[1:]), info.dtype) for key, info in self.outputs.items()}
        return _offsets(sizes, 0)[1]

    def results(self, count: int) -> Arrays:
        """Return empty arrays for the outputs."""
        return {key: np.empty((count, *info.shape[1:]), _TYPES[info.dtype]) for key, info in self.outputs.items()}


class SamplingPlans:
    """Runs the plans, one at a time.

    Args:
        plans: by the names that `trident_compiler.tensorrt.sampling_networks` gives them. They are closed with this.
        device: where they run.
    """

    def __init__(self, plans: Mapping[str, Plan], device: Device) -> None:
        self.device = device
        self._operations = {name: _operation(plan) for name, plan in plans.items()}
        argmax, read = plans[Sampling.ARGMAX], plans[Sampling.READ]
        #: Rows of the buffer that the logits lie in, and the vocabulary's size.
        self.max_rows, self.vocab_size = argmax.bounds(LOGITS, 0)[1]
        #: Rows, and pairs, of one run at most.
        self.max_chosen = argmax.bounds(Operand.ROWS, 0)[1][0]
        self.max_pairs = read.bounds(Operand.PAIRS, 0)[1][0]
        #: The counts that there are `top_k` plans for, ascending.
        self.sizes = Sampling.top_k_sizes(plans)
        self.num_ties = self._operations[Sampling.FIND_TIES].outputs[Operand.IDS].shape[1]
        #: Rows of the table of penalties.
        self.num_table_rows = plans[Sampling.PENALISE].bounds(Operand.TABLE, 0)[1][0]
        self.penalty_rows = PenaltyRows(self.num_table_rows)
        num_bytes = max(operation.num_bytes for operation in self._operations.values())
        self._pinned = device.pinned(num_bytes)
        #: Whether the device may still be reading the pinned memory.
        self._is_busy = False
        with ExitStack() as stack:
            self._area = device.allocate(num_bytes)
            stack.callback(device.free, self._area)
            #: `[max_chosen, V]`, where plans write rows that they change.
            self.changed = device.allocate(self.max_chosen * self.vocab_size * 4)
            stack.callback(device.free, self.changed)
            #: `[num_table_rows, V]`, the penalties of sequences; `penalty_rows` knows whose are where.
            self.table = device.allocate(self.num_table_rows * self.vocab_size * 4)
            stack.callback(device.free, self.table)
            self._resources = stack.pop_all()
        for plan in plans.values():
            self._resources.callback(plan.close)

    def run(self, name: str, logits: int, inputs: Arrays, num_rows: int | None = None) -> Arrays:
        """Run one plan.

        Args:
            name: of the plan.
            logits: address of `[num_rows, V]`.
            inputs: all others, C-contiguous, within the plan's limits.
            num_rows: `max_rows` by default.

        Returns:
            all outputs but `changed`, which the plan writes to `self.changed`, soon after this returns.

        Raises:
            EngineError: something failed on the device.
        """
        operation = self._operations[name]
        offsets, end = _offsets({key: array.nbytes for key, array in inputs.items()}, 0)
        if self._is_busy:
            self.device.synchronize()
        for key, array in inputs.items():
            assert array.dtype == _TYPES[operation.inputs[key].dtype], f"{key} of {name}"
            self._view(offsets[key], array.dtype, array.shape)[...] = array
        self.device.upload(self._area, self._pinned[:end])
        self._is_busy = True
        results = operation.results(len(inputs[operation.leader]))
        result_offsets, result_end = _offsets({key: empty.nbytes for key, empty in results.items()}, end)
        addresses = {key: self._area + offset for key, offset in (offsets | result_offsets).items()}
        on_device = {LOGITS: logits, Operand.CHANGED: self.changed, Operand.TABLE: self.table}
        addresses |= {key: on_device[key] for key in operation.large}
        shapes = {key: array.shape for key, array in inputs.items()}
        shapes[LOGITS] = self.max_rows if num_rows is None else num_rows, self.vocab_size
        if Operand.TABLE in operation.large:
            shapes[Operand.TABLE] = self.num_table_rows, self.vocab_size
        operation.plan.run(shapes, addresses)
        if results:
            self.device.download(self._pinned[end:result_end], self._area + end)
            self.device.synchronize()
            self._is_busy = False
        for key, result in results.items():
            result[...] = self._view(result_offsets[key], result.dtype, result.shape)
        return results

    def close(self) -> None:
        """Close the plans and free the memory on the device."""
        self._resources.close()

    def _view(self, offset: int, dtype: npt.DTypeLike, shape: tuple[int, ...]) -> Array:
        num_bytes = math.prod(shape) * np.dtype(dtype).itemsize
        return self._pinned[offset : offset + num_bytes].view(dtype).reshape(shape)


def load(folder: Path, device: Device, runtime_module: Any) -> SamplingPlans:
    """Load all plans in a folder.

    Args:
        folder: `sampling` in the engine's.
        device: where they run.
        runtime_module: `tensorrt`, `tensorrt_rtx`, or what has the same interface.

    Raises:
        ArtifactError: one of them is missing or cannot be read.
        EngineError: no memory.
    """
    if missing := Sampling.NEEDED - {path.stem for path in folder.glob("*.plan")}:
        raise ArtifactError(f"{folder.name}: {min(missing)}.plan, which sampling runs, is missing; build again")
    with ExitStack() as stack:
        plans = {}
        for path in sorted(folder.glob("*.plan")):
            plans[path.stem] = Plan(path, device, runtime_module)
            stack.callback(plans[path.stem].close)
        loaded = SamplingPlans(plans, device)
        stack.pop_all()
        return loaded


def _operation(plan: Plan) -> _Operation:
    tensors = plan.tensors
    small = {name: info for name, info in tensors.items() if name not in _LARGE}
    inputs = {name: info for name, info in small.items() if info.is_input}
    outputs = {name: info for name, info in small.items() if not info.is_input}
    leader = Operand.ROWS if Operand.ROWS in inputs else Operand.PAIRS
    return _Operation(plan, inputs, outputs, _LARGE & tensors.keys(), leader)


def _size(shape: tuple[int, ...], dtype: str) -> int:
    return math.prod(shape) * np.dtype(_TYPES[dtype]).itemsize


def _offsets(sizes: Mapping[str, int], start: int) -> tuple[dict[str, int], int]:
    """Return the aligned offsets of arrays of these sizes, one after another from `start` on, and the next offset."""
    offsets = {}
    for name, size in sizes.items():
        offsets[name] = start
        start += -(-size // ALIGNMENT) * ALIGNMENT
    return offsets, start
