"""The small inputs of a step on the device: all of them in one upload, always at the same addresses.

Owns their pinned and their device memory, their offsets, and what padding holds. Never decides how attention is
divided: `AttentionPlanner` does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from trident_backend.engine.gpu.attention_plan import AttentionPlan, AttentionPlanner, PlanBounds
from trident_backend.engine.gpu.device import Device
from trident_backend.engine.gpu.names import ALIGNMENT
from trident_backend.engine.gpu.program import Program, StepInput
from trident_backend.engine.protocol import EngineSpec, Int32Array, StepBatch

_INT_BYTES = 4
_ITEM_LEN, _MERGE_LEN = 8, 4
#: Beside the network's inputs, which have their own names.
_PLACES, _TABLES = "places", "tables"
#: The parts of a plan; each kind of attention has its own.
_FEW, _MANY, _MERGES_FEW, _MERGES_MANY = "few", "many", "merges_few", "merges_many"


@dataclass(frozen=True)
class StepGrids:
    """The size of a step's attention for each of the program's kinds of attention, without padding.

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
        num_programs: how many programs of a kernel the GPU runs at a time, about 4 for each multiprocessor.
    """

    def __init__(self, device: Device, program: Program, spec: EngineSpec, num_programs: int) -> None:
        self._device = device
        self._spec = spec
        self._planners = [AttentionPlanner(kind, num_programs) for kind in program.attention_kinds]
        kinds = range(len(self._planners))
        self._offsets, num_ints = _offsets(_sizes(spec, [self.bounds(kind, spec.max_num_tokens) for kind in kinds]))
        self._host: Int32Array = device.pinned(num_ints * _INT_BYTES).view(np.int32)
        self._address = device.allocate(num_ints * _INT_BYTES)

    def bounds(self, kind: int, num_tokens: int) -> PlanBounds:
        """Return how much attention of a kind a step of at most so many tokens has, at most.

        A captured step launches grids of this size; those of `max_num_tokens` say how many partials there must be
        memory for.
        """
        return self._planners[kind].bounds(num_tokens, self._spec.max_num_seqs)

    def upload(self, batch: StepBatch, num_tokens_padded: int, num_rows_padded: int) -> StepGrids:
        """Enqueue the upload of all inputs of a step.

        Nothing of the step before may still be reading them. Padding are tokens 0 at position 0 that no place is for
        (-1), rows 0, and items and merges of no tokens, up to the bounds of `num_tokens_padded`.

        Args:
            batch: the step.
            num_tokens_padded: tokens that the body computes, from those of the step to `max_num_tokens`.
            num_rows_padded: rows that the head computes, from those of the step to `max_num_tokens`.

        Raises:
            EngineError: something failed on the device.
        """
        self._write(StepInput.TOKEN_IDS.value, batch.token_ids, num_tokens_padded)
        self._write(StepInput.POSITION_IDS.value, batch.position_ids, num_tokens_padded)
        self._write(StepInput.LOGIT_ROWS.value, batch.logit_rows, num_rows_padded)
        self._write(_PLACES, _places_of(batch, self._spec.block_size), num_tokens_padded, padding=-1)
        plans = [
            planner.plan(batch.past_lens, batch.subsequence_begins, batch.block_indices_begins)
            for planner in self._planners
        ]
        for kind, plan in enumerate(plans):
            bounds = self.bounds(kind, num_tokens_padded)
            self._write(_of_kind(_FEW, kind), plan.few, bounds.few * _ITEM_LEN)
            self._write(_of_kind(_MANY, kind), plan.many, bounds.many * _ITEM_LEN)
            self._write(_of_kind(_MERGES_FEW, kind), plan.merges_few, bounds.merges_few * _MERGE_LEN)
            self._write(_of_kind(_MERGES_MANY, kind), plan.merges_many, bounds.merges_many * _MERGE_LEN)
        # The tables lie last: what there is no table in is not sent.
        end = self._write(_TABLES, batch.block_indices, batch.block_indices.size)
        self._device.upload(self._address, self._host[:end])
        return _grids(plans)

    def address(self, name: StepInput) -> int:
        """Return the address of an input of the network."""
        return self._address_of(name.value)

    @property
    def places(self) -> int:
        """The address of the places in the cache that tokens are written to: `block * block_size + offset`."""
        return self._address_of(_PLACES)

    @property
    def tables(self) -> int:
        """The address of the block tables, one after another."""
        return self._address_of(_TABLES)

    def items_few(self, kind: int) -> int:
        """Return the address of the items of small tiles."""
        return self._address_of(_of_kind(_FEW, kind))

    def items_many(self, kind: int) -> int:
        """Return the address of the items of large tiles."""
        return self._address_of(_of_kind(_MANY, kind))

    def merges_few(self, kind: int) -> int:
        """Return the address of the merges of small tiles."""
        return self._address_of(_of_kind(_MERGES_FEW, kind))

    def merges_many(self, kind: int) -> int:
        """Return the address of the merges of large tiles."""
        return self._address_of(_of_kind(_MERGES_MANY, kind))

    def close(self) -> None:
        """Free the device memory; the pinned memory is the device's to free."""
        self._device.free(self._address)

    def _write(self, name: str, values: Int32Array, num_padded: int, padding: int = 0) -> int:
        """Write an array and its padding where the inputs of this name lie, and return the offset behind them."""
        begin, most = self._offsets[name]
        assert values.size <= num_padded <= most, f"{name}: {values.size} numbers of {num_padded}, at most {most}"
        self._host[begin : begin + values.size] = values.ravel()
        self._host[begin + values.size : begin + num_padded] = padding
        return begin + num_padded

    def _address_of(self, name: str) -> int:
        return self._address + self._offsets[name][0] * _INT_BYTES


def _sizes(spec: EngineSpec, bounds: Sequence[PlanBounds]) -> dict[str, int]:
    """Return how many numbers the largest inputs have, in the order in which they lie."""
    sizes = dict.fromkeys((*(each.value for each in StepInput), _PLACES), spec.max_num_tokens)
    for kind, most in enumerate(bounds):
        sizes[_of_kind(_FEW, kind)] = most.few * _ITEM_LEN
        sizes[_of_kind(_MANY, kind)] = most.many * _ITEM_LEN
        sizes[_of_kind(_MERGES_FEW, kind)] = most.merges_few * _MERGE_LEN
        sizes[_of_kind(_MERGES_MANY, kind)] = most.merges_many * _MERGE_LEN
    sizes[_TABLES] = spec.max_num_seqs * -(-spec.max_seq_len // spec.block_size)
    return sizes


def _offsets(sizes: Mapping[str, int]) -> tuple[dict[str, tuple[int, int]], int]:
    """Return the offset and the size of each, in numbers, and where the last of them ends."""
    aligned = ALIGNMENT // _INT_BYTES
    offsets, end = {}, 0
    for name, size in sizes.items():
        offsets[name] = (end, size)
        end += -(-size // aligned) * aligned
    return offsets, end


def _of_kind(part: str, kind: int) -> str:
    return f"{part}.{kind}"


def _places_of(batch: StepBatch, block_size: int) -> Int32Array:
    """Return where each token's keys and values go."""
    owners = np.arange(len(batch.past_lens)).repeat(np.diff(batch.subsequence_begins))
    blocks, offsets = np.divmod(batch.position_ids, block_size)
    places: Int32Array = (
        batch.block_indices[batch.block_indices_begins[owners] + blocks] * np.int32(block_size) + offsets
    )
    return places


def _grids(plans: Sequence[AttentionPlan]) -> StepGrids:
    return StepGrids(
        few=tuple(len(plan.few) for plan in plans),
        many=tuple(len(plan.many) for plan in plans),
        merges_few=tuple(len(plan.merges_few) for plan in plans),
        merges_many=tuple(len(plan.merges_many) for plan in plans),
    )
