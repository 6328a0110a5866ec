"""A value of the network language as launches of kernels know it.

Owns the handle that operations take and give. Never launches anything.
"""

from __future__ import annotations

from dataclasses import dataclass

from trident_backend.engine.gpu.program import Argument, Count


@dataclass(frozen=True)
class Tensor:
    """A wide value `[rows, width]`, or heads `[rows, heads, width / heads]` in the same memory.

    Args:
        at: where it lies: a value of the program, or the logits.
        width: numbers in a row, of all heads.
        dtype: Triton's name of their type.
        count: what its rows are.
        heads: into how many heads of equal size it is split; 0 where it is wide.
    """

    at: Argument
    width: int
    dtype: str
    count: Count
    heads: int = 0

    @property
    def last(self) -> int:
        """Size of the last axis: of a head, or of the whole row."""
        return self.width // max(1, self.heads)
