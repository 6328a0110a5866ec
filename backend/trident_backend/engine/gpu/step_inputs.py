"""The small inputs of a step on the device: all of them in one upload, always at the same addresses.

Owns their pinned and their device memory, their offsets, and what padding holds. Never decides how attention is
divided: `AttentionPlanner` does.
"""

from __future__ import annotations

from dataclasses import dataclass

from trident_backend.engine.cuda.program import Program, StepInput
from trident_backend.engine.gpu.attention_plan import PlanBounds
from trident_backend.engine.gpu.device import Device
from trident_backend.engine.protocol import EngineSpec, StepBatch


@dataclass(frozen=True)
class StepGrids:
    """How much attention a step has, for each of the program's kinds of attention, without padding.

    Args:
        few: items of small tiles.
        many: items of large tiles.
        merges_few: divided small tiles.
        merges_many: divided large tiles.
    """

    few: tuple[int, ...]
    many: tuple[int, ...]
    merges_few: tuple[int, ...]
    merges_many: tuple[int, ...]

    @property
    def has_many(self) -> bool:
        """Whether there is any large tile."""
        return any(self.many)


class StepInputBuffer:
    """Memory for the inputs of any step.

    Args:
        device: whose.
        program: its kinds of attention.
        spec: the engine's limits.
        num_programs: how many programs of a kernel fill the GPU, about 4 for each multiprocessor.
    """

    def __init__(self, device: Device, program: Program, spec: EngineSpec, num_programs: int) -> None:
        raise NotImplementedError

    def bounds(self, kind: int, num_tokens: int) -> PlanBounds:
        """Return how much attention of a kind a step of at most so many tokens has, at most.

        A captured step launches grids of this size; those of `max_num_tokens` say how many partials there must be
        memory for.
        """
        raise NotImplementedError

    def upload(self, batch: StepBatch, num_tokens_padded: int, num_rows_padded: int) -> StepGrids:
        """Enqueue the upload of all inputs of a step.

        Nothing of the step before may still be reading them. Padding are tokens 0 at position 0 that no place is for
        (-1), rows 0, and items and merges of no tokens, up to the bounds of `num_tokens_padded`.

        Args:
            batch: the step.
            num_tokens_padded: tokens that the body computes, at least those of the step.
            num_rows_padded: rows that the head computes, at least those of the step.

        Raises:
            EngineError: something failed on the device.
        """
        raise NotImplementedError

    def address(self, name: StepInput) -> int:
        """Return the address of an input of the network."""
        raise NotImplementedError

    @property
    def places(self) -> int:
        """The address of the places in the cache that tokens are written to: `block * block_size + offset`."""
        raise NotImplementedError

    @property
    def tables(self) -> int:
        """The address of the block tables, one after another."""
        raise NotImplementedError

    def items_few(self, kind: int) -> int:
        """Return the address of the items of small tiles."""
        raise NotImplementedError

    def items_many(self, kind: int) -> int:
        """Return the address of the items of large tiles."""
        raise NotImplementedError

    def merges_few(self, kind: int) -> int:
        """Return the address of the merges of small tiles."""
        raise NotImplementedError

    def merges_many(self, kind: int) -> int:
        """Return the address of the merges of large tiles."""
        raise NotImplementedError

    def close(self) -> None:
        """Free the device memory; the pinned memory is the device's to free."""
        raise NotImplementedError
