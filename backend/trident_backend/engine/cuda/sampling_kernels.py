"""The kernels of an engine that sampling runs on the device, and the little memory that goes to them and back.

Owns their limits, the arrays on their way, the rows that are being changed and the table of penalties. Never owns a
step's logits, which it knows by their address alone, nor the kernels' code.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from trident_backend.engine.cuda.names import COPY_ROWS, rank
from trident_backend.engine.cuda.program import Kernel, Program, SamplingLimits
from trident_backend.engine.gpu.device import Device
from trident_backend.engine.gpu.freeing import freed_on_failure
from trident_backend.engine.gpu.kernels import KernelLibrary
from trident_backend.engine.gpu.names import ALIGNMENT, Operand, Sampling
from trident_backend.engine.gpu.penalty_rows import PenaltyRows
from trident_backend.engine.gpu.sampling_operations import Array, Arrays
from trident_backend.engine.protocol import CHUNK_WIDTH

_TYPES: Mapping[str, npt.DTypeLike] = {
    Operand.ROWS: np.int32,
    Operand.PAIRS: np.int32,
    Operand.IDS: np.int32,
    Operand.VALUES: np.float32,
    Operand.SUMS: np.float32,
    Operand.MAXIMA: np.float32,
    Operand.INVERSES: np.float32,
    Operand.FLOORS: np.float32,
    Operand.TABLE_ROWS: np.int32,
    Operand.REPETITIONS: np.float32,
    Operand.MASKS: np.uint8,
}


#: The arguments that every kernel may have: addresses, and numbers.
_OWN_ADDRESSES = frozenset({"logits", Operand.CHANGED, Operand.TABLE, "keys", "key_ids"})
NUMBERS = frozenset({"count", "num_pairs"})


@dataclass(frozen=True)
class Operation:
    """The launches of an operation, and the shapes of what it takes and gives, after the first axis.

    Args:
        kernels: their names, in order.
        inputs: but for the logits.
        outputs: their first axis is as long as that of the input `leader`.
        leader: names rows or pairs.
        count: how many are looked for in each row, where that is asked.
    """

    kernels: tuple[str, ...]
    inputs: Mapping[str, tuple[int, ...]]
    outputs: Mapping[str, tuple[int, ...]]
    leader: str = Operand.ROWS
    count: int = 0

    def num_bytes(self, limits: SamplingLimits) -> int:
        """Return the bytes of the largest inputs and outputs."""
        most = {Operand.ROWS: limits.max_chosen, Operand.PAIRS: limits.max_pairs}
        # The values that `write` takes are those of pairs.
        by_pair = {Operand.PAIRS} | ({Operand.VALUES} if Operand.PAIRS in self.inputs else set())
        counts = {name: most[Operand.PAIRS if name in by_pair else Operand.ROWS] for name in self.inputs}
        counts |= dict.fromkeys(self.outputs, most[self.leader])
        sizes = [_size((counts[name], *shape), name) for name, shape in (*self.inputs.items(), *self.outputs.items())]
        return sum(_aligned(size) for size in sizes)


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
        offsets, end = _offsets({key: array.nbytes for key, array in inputs.items()}, 0)
        if self._is_busy:
            self.device.synchronize()
        for key, array in inputs.items():
            assert array.dtype == _TYPES[key], f"{key} of {name}"
            self._view(offsets[key], array.dtype, array.shape)[...] = array
        self.device.upload(self._area, self._pinned[:end])
        self._is_busy = True
        count = len(inputs[operation.leader])
        results = {key: np.empty((count, *shape), _TYPES[key]) for key, shape in operation.outputs.items()}
        result_offsets, result_end = _offsets({key: empty.nbytes for key, empty in results.items()}, end)
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
        grid = _grid(kernel, num_lines, arguments)
        self._library.launch(name, grid, {key: arguments[key] for key, _ in kernel.parameters})

    def _view(self, offset: int, dtype: npt.DTypeLike, shape: tuple[int, ...]) -> Array:
        num_bytes = math.prod(shape) * np.dtype(dtype).itemsize
        return self._pinned[offset : offset + num_bytes].view(dtype).reshape(shape)


def addresses_of(operation: Operation) -> frozenset[str]:
    """Return the names of the addresses that the kernels of an operation may have as arguments."""
    return _OWN_ADDRESSES.union(operation.inputs, operation.outputs)


def operations_of(program: Program) -> dict[str, Operation]:
    """Return the operations by name."""
    vocab_size, limits = program.vocab_size, program.sampling
    rows: dict[str, tuple[int, ...]] = {Operand.ROWS: ()}
    pairs: dict[str, tuple[int, ...]] = {Operand.PAIRS: (2,)}
    sums: dict[str, tuple[int, ...]] = {Operand.SUMS: (-(-vocab_size // CHUNK_WIDTH),)}
    weighed = {**rows, Operand.MAXIMA: (), Operand.INVERSES: (), Operand.FLOORS: ()}
    penalised = {**rows, Operand.TABLE_ROWS: (), Operand.REPETITIONS: ()}
    masked = {**rows, Operand.MASKS: (-(-vocab_size // 32) * 4,)}
    simple: dict[str, tuple[dict[str, tuple[int, ...]], dict[str, tuple[int, ...]]]] = {
        Sampling.ARGMAX: (rows, {Operand.IDS: (), Operand.VALUES: ()}),
        Sampling.CHUNK_EXP_SUMS: (weighed, sums),
        Sampling.FIND_TIES: ({**rows, Operand.VALUES: ()}, {Operand.IDS: (limits.num_ties,)}),
        Sampling.PENALISE: (penalised, {}),
        Sampling.APPLY_TOKEN_BITMASK: (masked, {}),
    }
    return {
        **{name: Operation((name,), *shapes) for name, shapes in simple.items()},
        **{
            Sampling.top_k(size): Operation(
                (Sampling.top_k(size), rank(size)), rows, {Operand.VALUES: (size,), Operand.IDS: (size,)}, count=size
            )
            for size in limits.top_k
        },
        Sampling.READ: Operation((Sampling.READ,), pairs, {Operand.VALUES: ()}, Operand.PAIRS),
        Sampling.WRITE: Operation((COPY_ROWS, Sampling.WRITE), {**rows, **pairs, Operand.VALUES: ()}, {}),
    }


#: What the second axis of the grid of rows counts, and how much of it a program has, by the names of arguments or
#: constants; where there is nothing, a program has a whole row.
PARTS: Mapping[str, tuple[str, str] | None] = {
    "sampling.argmax": None,
    "sampling.select": None,
    "sampling.find_ties": None,
    "sampling.rank": ("count", "BLOCK"),
    "sampling.chunk_exp_sums": ("NUM_CHUNKS", "CHUNKS"),
    "sampling.copy_rows": ("VOCAB", "BLOCK"),
    "sampling.penalise": ("VOCAB", "BLOCK"),
    "sampling.apply_token_bitmask": ("VOCAB", "BLOCK"),
}


def _grid(kernel: Kernel, num_rows: int, arguments: Mapping[str, int]) -> tuple[int, int, int]:
    """Return the grid of a kernel: over pairs, or over rows and parts of them."""
    sizes = {**kernel.constants, **arguments}
    if kernel.function not in PARTS:
        return -(-int(sizes["num_pairs"]) // int(sizes["BLOCK"])), 1, 1
    parts = PARTS[kernel.function]
    if parts is None:
        return num_rows, 1, 1
    total, part = (int(sizes[name]) for name in parts)
    return num_rows, -(-total // part), 1


def _size(shape: tuple[int, ...], name: str) -> int:
    return math.prod(shape) * np.dtype(_TYPES[name]).itemsize


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _offsets(sizes: Mapping[str, int], start: int) -> tuple[dict[str, int], int]:
    """Return the aligned offsets of arrays of these sizes, one after another from `start` on, and the next offset."""
    offsets = {}
    for name, size in sizes.items():
        offsets[name] = start
        start += _aligned(size)
    return offsets, start
