"""What a step's logits ask of a compiler's sampling operations on a GPU.

Owns the interface. Never runs anything.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy.typing as npt

from trident_backend.engine.gpu.device import Device
from trident_backend.engine.gpu.penalty_rows import PenaltyRows

Array = npt.NDArray[Any]
Arrays = dict[str, Array]


class SamplingOperations(Protocol):
    """Sampling's operations as they were compiled for one device, with their limits.

    Args:
        device: where they run.
        max_rows: rows of the buffer that the logits lie in.
        vocab_size: width of a row.
        max_chosen: rows of one run at most.
        max_pairs: pairs of a row and a token of one run at most.
        sizes: the counts that there is a `top_k` for, ascending.
        num_ties: tokens that `find_ties` finds at most.
        num_table_rows: rows of the table of penalties.
        penalty_rows: knows whose penalties are in which row of the table.
        changed: the address of `[max_chosen, V]`, where rows are written that an operation changes.
        table: the address of `[num_table_rows, V]`, the penalties of sequences.
    """

    device: Device
    max_rows: int
    vocab_size: int
    max_chosen: int
    max_pairs: int
    sizes: list[int]
    num_ties: int
    num_table_rows: int
    penalty_rows: PenaltyRows
    changed: int
    table: int

    def run(self, name: str, logits: int, inputs: Arrays, num_rows: int | None = None) -> Arrays:
        """Run one operation.

        Args:
            name: of the operation, as `Sampling` has it.
            logits: address of `[num_rows, V]`.
            inputs: all others, by the names of `Operand`, C-contiguous, within the limits.
            num_rows: `max_rows` by default.

        Returns:
            all outputs but `changed`, which the operation writes soon after this returns.

        Raises:
            EngineError: something failed on the device.
        """
        ...
