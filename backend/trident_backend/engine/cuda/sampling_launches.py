"""The launches that sampling's operations are made of: their kernels, shapes and grids.

Owns what each operation takes and gives, and how its arrays lie in the little memory of a run. Never launches anything.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from trident_backend.engine.cuda.names import COPY_ROWS, rank
from trident_backend.engine.gpu.names import ALIGNMENT, Operand, Sampling
from trident_backend.engine.gpu.program import Kernel, Program, SamplingLimits
from trident_backend.engine.protocol import CHUNK_WIDTH

TYPES: Mapping[str, npt.DTypeLike] = {
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


def grid_of(kernel: Kernel, num_rows: int, arguments: Mapping[str, int]) -> tuple[int, int, int]:
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
    return math.prod(shape) * np.dtype(TYPES[name]).itemsize


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def offsets_of(sizes: Mapping[str, int], start: int) -> tuple[dict[str, int], int]:
    """Return the aligned offsets of arrays of these sizes, one after another from `start` on, and the next offset."""
    offsets = {}
    for name, size in sizes.items():
        offsets[name] = start
        start += _aligned(size)
    return offsets, start
