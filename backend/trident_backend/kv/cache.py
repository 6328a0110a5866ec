"""The KV cache as the scheduler and the loop see it.

Owns the interface: room promised, taken, shared and given back. Never knows how an engine lays it out.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from trident_backend.sequences.sequence import Sequence


class KVCache(Protocol):
    """Room for the keys and values of running sequences, however an engine lays them out.

    It is made of equal blocks; where every sequence has a slot of its own, that is its one block.
    """

    @property
    def num_blocks(self) -> int:
        """Blocks in all."""
        ...

    @property
    def block_size(self) -> int:
        """Tokens in a block."""
        ...

    @property
    def num_free(self) -> int:
        """Blocks that nobody uses; some may still hold a prefix that can be used again."""
        ...

    @property
    def num_used(self) -> int:
        """Blocks in use."""
        ...

    @property
    def num_reused(self) -> int:
        """Blocks that sequences have found filled, so far."""
        ...

    def fits(self, num_tokens: int) -> bool:
        """Whether one sequence of this length fits into an empty cache."""
        ...

    def admit(self, sequence: Sequence, num_tokens: int) -> int | None:
        """Promise room for the sequence's first `num_tokens` tokens.

        One whose parent has computed their prompt shares it, all but the last token.

        Returns:
            how many of its tokens are in the cache already (never all of them: the last one's logits are needed);
            None, and nothing changed, if there is not enough room.
        """
        ...

    def num_cached(self, sequence: Sequence) -> int:
        """How many of a sequence's tokens it would find in the cache now."""
        ...

    def grow(self, sequence: Sequence, num_tokens: int) -> bool:
        """Make room for the first `num_tokens` tokens; never fails within the promise, False if it cannot beyond."""
        ...

    def commit(self, sequence: Sequence) -> None:
        """The sequence's computed tokens are in the cache for good and may be shared."""
        ...

    def release(self, sequence: Sequence) -> None:
        """Take back everything the sequence has and was promised."""
        ...

    def take_copies(self) -> tuple[tuple[int, int, int], ...]:
        """Blocks to copy before the next step computes, see `StepBatch.block_copies`: for sequences that have grown
        into what they only shared, and of what makes way for them. Each is named once, and until then nobody computes
        in what is to be read; their order counts, as what is read may be written by a later one."""
        ...

    def check_integrity(self, running: Iterable[Sequence]) -> None:
        """Assert, between two steps, that every block is accounted for and nobody's content is in danger.

        Args:
            running: all sequences that have been admitted and not released.
        """
        ...
