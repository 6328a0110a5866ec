"""One device's share of a network: which part of which weight it takes.

Owns the arithmetic of parts. Never converts a weight, never runs anything, and never decides what is divided: that
follows from a tensor's role.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from trident_compiler.weights.roles import Split


@dataclass(frozen=True)
class ShardSpec:
    """One device's share of a network.

    Args:
        rank: which device, from 0.
        num_ranks: how many there are.
    """

    rank: int = 0
    num_ranks: int = 1

    def of(self, size: int) -> slice:
        """Return this device's part of an axis of `size`, which the number of devices divides."""
        part = size // self.num_ranks
        assert part * self.num_ranks == size, "Outline.check_division comes first"
        return slice(self.rank * part, (self.rank + 1) * part)

    def part(self, values: npt.NDArray[Any], split: Split | None) -> npt.NDArray[Any]:
        """Return this device's part of a matrix `[out, in]` or of a vector `[out]`, contiguous.

        Returns:
            `[out / num_ranks, in]` or `[out / num_ranks]` for `Split.OUT` and `Split.HEADS`, `[out, in / num_ranks]`
            for `Split.IN`, and the whole where nothing is split.
        """
        if split is None:
            return values
        if split is not Split.IN:
            return values[self.of(values.shape[0])]
        return np.ascontiguousarray(values[:, self.of(values.shape[1])])


#: One device takes everything.
WHOLE = ShardSpec()
