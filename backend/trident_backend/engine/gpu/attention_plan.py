"""How a step's attention is divided into items, each of which a program of `attention.attend` computes.

Owns the division: which tokens share a tile, into how many pieces a tile's keys are divided, and how many items any
step of a size has at most. Never touches a device.
"""

from __future__ import annotations

from dataclasses import dataclass

from trident_backend.engine.cuda.program import AttentionKind
from trident_backend.engine.protocol import Int32Array


@dataclass(frozen=True)
class AttentionPlan:
    """The attention of one step.

    Args:
        few: `[n, 8]`, the items of small tiles: begin of the sequence's table, first token on the packed axis, number
            of tokens, position of the first token, first key, end of keys, partial or -1, 1 for the first piece.
        many: `[n, 8]`, the items of large tiles.
        merges_few: `[m, 4]`, the divided small tiles: first token, number of tokens, first partial, number of partials.
        merges_many: `[m, 4]`, the divided large tiles; their partials are numbered apart.
        num_partials_few: of small tiles.
        num_partials_many: of large tiles.
    """

    few: Int32Array
    many: Int32Array
    merges_few: Int32Array
    merges_many: Int32Array
    num_partials_few: int
    num_partials_many: int


@dataclass(frozen=True)
class PlanBounds:
    """The most that the plan of any step of a size has: items, merges and partials, of small and of large tiles."""

    few: int
    many: int
    merges_few: int
    merges_many: int
    partials_few: int
    partials_many: int


class AttentionPlanner:
    """Divides the attention of steps, for layers that are alike.

    Args:
        kind: of the layers.
        num_programs: how many programs of a kernel fill the GPU, about 4 for each multiprocessor.
    """

    def __init__(self, kind: AttentionKind, num_programs: int) -> None:
        raise NotImplementedError

    def plan(self, past_lens: Int32Array, subsequence_begins: Int32Array, table_begins: Int32Array) -> AttentionPlan:
        """Divide a step.

        Args:
            past_lens: `[S]`, as `StepBatch` has them.
            subsequence_begins: `[S + 1]`, likewise.
            table_begins: `[S]` or more, where the sequences' tables begin.
        """
        raise NotImplementedError

    def bounds(self, num_tokens: int, num_seqs: int | None = None) -> PlanBounds:
        """Return what no plan exceeds, of a step of at most so many tokens of so many sequences (default: as many)."""
        raise NotImplementedError
