"""The kernels of an engine that sampling runs on the device, and the little memory that goes to them and back.

Owns their limits, the arrays on their way, the rows that are being changed and the table of penalties. Never owns a
step's logits, which it knows by their address alone, nor the kernels' code.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from trident_backend.engine.cuda.sampling_launches import TYPES, grid_of, offsets_of, operations_of
from trident_backend.engine.gpu.device import Device
from trident_backend.engine.gpu.freeing import freed_on_failure
from trident_backend.engine.gpu.kernels import KernelLibrary
from trident_backend.engine.gpu.names import Operand
from trident_backend.engine.gpu.penalty_rows import PenaltyRows
from trident_backend.engine.gpu.program import Program
from trident_backend.engine.gpu.sampling_operations import Array, Arrays


class SamplingKernels:
    """Runs sampling's operations, one at a time, as `SamplingOperations` says.

    Args:
        library: the engine's kernels; it is closed by its owner, after this.
        program: the engine's, with the kernels of `trident_compiler.cuda.sampling_kernels` and their limits.
        device: where they run.
    """

    def __init__(self, library: KernelLibrary, program: Program, device: Device) -> None:
        limits = program.sampling
        self.device = device
        self.vocab_size = program.vocab_size
        self.max_rows = limits.max_rows
        self.max_chosen = limits.max_chosen
        self.max_pairs = limits.max_pairs
        #: The counts that there are `top_k` kernels for, ascending.
        self.sizes = list(limits.top_k)
        self.num_ties = limits.num_ties
        #: Rows of the table of penalties.
        self.num_table_rows = limits.num_table_rows
        self.penalty_rows = PenaltyRows(self.num_table_rows)
        self._library = library
        self._kernels = program.kernels
        self._operations = operations_of(program)
        num_bytes = max(operation.num_bytes(limits) for operation in self._operations.values())
        self._pinned = device.pinned(num_bytes)
        #: Whether the device may still be reading the pinned memory.
        self._is_busy = False
        with freed_on_failure() as stack:

            def allocate(num_rows: int, width: int) -> int:
                address = device.allocate(num_rows * width * 4)
                stack.callback(device.free, address)
                return address

            self._area = allocate(-(-num_bytes // 4), 1)
            #: `[max_chosen, V]`, where rows are written that an operation changes.
            self.changed = allocate(self.max_chosen, self.vocab_size)
            #: `[num_table_rows, V]`, the penalties of sequences; `penalty_rows` knows whose are where.
            self.table = allocate(self.num_table_rows, self.vocab_size)
            self._keys = allocate(self.max_chosen, max(self.sizes))
            self._key_ids = allocate(self.max_chosen, max(self.sizes))
        self._resources = stack

    def run(self, name: str, logits: int, inputs: Arrays, num_rows: int | None = None) -> Arrays:
        """Run one operation.

        Args:
            name: of the operation, as `Sampling` has it.
            logits: address of `[num_rows, V]`.
            inputs: all others, C-contiguous, within the limits.
            num_rows: `max_rows` by default.

        Returns:
            all outputs but `changed`, which is written to `self.changed`, soon after this returns.

        Raises:
            EngineError: something failed on the device.
        """
        del num_rows  # Kernels are told which rows there are by `rows` and `pairs` alone.
        operation = self._operations[name]
        assert inputs.keys() == operation.inputs.keys(), name
        offsets, end = offsets_of({key: array.nbytes for key, array in inputs.items()}, 0)
        if self._is_busy:
            self.device.synchronize()
        for key, array in inputs.items():
            assert array.dtype == TYPES[key], f"{key} of {name}"
            self._view(offsets[key], array.dtype, array.shape)[...] = array
        self.device.upload(self._area, self._pinned[:end])
        self._is_busy = True
        count = len(inputs[operation.leader])
        results = {key: np.empty((count, *shape), TYPES[key]) for key, shape in operation.outputs.items()}
        result_offsets, result_end = offsets_of({key: empty.nbytes for key, empty in results.items()}, end)
        arguments = {key: self._area + offset for key, offset in (offsets | result_offsets).items()}
        arguments |= {
            "logits": logits,
            Operand.CHANGED: self.changed,
            Operand.TABLE: self.table,
            "keys": self._keys,
            "key_ids": self._key_ids,
            "count": operation.count,
            "num_pairs": len(inputs.get(Operand.PAIRS, ())),
        }
        num_lines = len(inputs.get(Operand.ROWS, ()))
        for each in operation.kernels:
            self._launch(each, num_lines, arguments)
        if results:
            self.device.download(self._pinned[end:result_end], self._area + end)
            self.device.synchronize()
            self._is_busy = False
        for key, result in results.items():
            result[...] = self._view(result_offsets[key], result.dtype, result.shape)
        return results

    def close(self) -> None:
        """Free the memory on the device."""
        self._resources.close()

    def _launch(self, name: str, num_lines: int, arguments: Mapping[str, int]) -> None:
        kernel = self._kernels[name]
        grid = grid_of(kernel, num_lines, arguments)
        self._library.launch(name, grid, {key: arguments[key] for key, _ in kernel.parameters})

    def _view(self, offset: int, dtype: npt.DTypeLike, shape: tuple[int, ...]) -> Array:
        num_bytes = math.prod(shape) * np.dtype(dtype).itemsize
        return self._pinned[offset : offset + num_bytes].view(dtype).reshape(shape)
