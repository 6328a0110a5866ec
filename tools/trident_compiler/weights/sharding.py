"""How a network is divided among devices: which part of which weight each of them takes.

Owns the arithmetic of parts and the refusal of what cannot be divided. The division is Megatron's: heads and the
feed-forward's inner features are shared out, so that a layer needs two sums over the devices; embeddings and norms are
whole on each. Never converts a weight, never runs anything.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np
import numpy.typing as npt

from trident_compiler.checkpoint.model_config import ModelConfig
from trident_ensemble.contract.errors import PlanError


class Split(Enum):
    """Along which axis of a matrix `[out, in]` it is shared out."""

    #: Each device computes some of the outputs; a vector goes with them.
    OUT = "out"
    #: Each device computes with some of the inputs, and the products are summed.
    IN = "in"


@dataclass(frozen=True)
class ShardSpec:
    """One device's share of a network.

    Args:
        rank: which device.
        num_ranks: how many there are.
    """

    rank: int = 0
    num_ranks: int = 1

    def of(self, size: int) -> slice:
        """This device's part of an axis."""
        part = size // self.num_ranks
        assert part * self.num_ranks == size, "check_division comes first"
        return slice(self.rank * part, (self.rank + 1) * part)

    def part(self, values: npt.NDArray[Any], split: Split | None) -> npt.NDArray[Any]:
        """This device's part of a matrix or of a vector, contiguous; the whole where nothing is split."""
        if split is None:
            return values
        if split is Split.OUT:
            return values[self.of(values.shape[0])]
        return np.ascontiguousarray(values[:, self.of(values.shape[1])])


#: One device takes everything.
WHOLE = ShardSpec()


def check_division(config: ModelConfig, num_ranks: int) -> None:
    """Refuse a number of devices among which the network cannot be divided.

    Raises:
        PlanError: names what is not divided, and its size.
    """
    if num_ranks < 1:
        raise PlanError(f"--tensor-parallel: must be at least 1, not {num_ranks}")
    for name, size in (
        ("num_attention_heads", config.num_heads),
        ("num_key_value_heads", config.num_kv_heads),
        ("intermediate_size", config.intermediate_size),
        ("vocab_size", config.vocab_size),
    ):
        if size % num_ranks:
            raise PlanError(f"--tensor-parallel: {num_ranks} devices cannot share the checkpoint's {name} = {size}")
