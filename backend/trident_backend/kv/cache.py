"""The KV cache as the scheduler and the loop see it.

Owns the interface (room reserved, allocated, shared and given back) and the choice between blocks and slots, by what
the engine says of itself; nothing else knows which it is. Never knows how an engine lays out keys and values.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from trident_backend.engine.protocol import EngineSpec
from trident_backend.kv.blocks import BlockManager
from trident_backend.kv.slots import SlotManager
from trident_backend.sequences.sequence import Sequence
from trident_backend.sequences.steps import BlockCopy
from trident_ensemble.contract.manifest import KVKind

#: Tokens of a slot that are hashed together: few enough that little of a prefix is computed again.
SLOT_HASH_BLOCK_SIZE = 32


class KVCache(Protocol):
    """Room for the keys and values of running sequences, however an engine lays them out.

    It is made of equal blocks; where every sequence has a slot of its own, that is its one block. It writes the fields
    of a `Sequence` that are the KV cache's, and is used by the engine loop's thread alone.
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
        """Blocks that no sequence uses; some may still hold a prefix that can be used again."""
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
        """Return whether one sequence of this length fits into an empty cache."""
        ...

    def admit(self, sequence: Sequence, num_tokens: int) -> int | None:
        """Reserve room for the sequence's first `num_tokens` tokens.

        One whose parent has computed their prompt shares it, all but the last token.

        Returns:
            how many of its tokens are in the cache already (never all of them: the last one's logits are needed);
            None, and nothing changed, if there is not enough room.
        """
        ...

    def num_cached(self, sequence: Sequence) -> int:
        """Return how many of a sequence's tokens it would find in the cache now."""
        ...

    def grow(self, sequence: Sequence, num_tokens: int) -> bool:
        """Make room for the first `num_tokens` tokens.

        Nothing changes up to `Sequence.num_allocated_tokens`, so that it need not be called for these.

        Returns:
            True; False if there is no room beyond what was reserved.
        """
        ...

    def commit(self, sequence: Sequence) -> None:
        """Let others share what the sequence has computed: it is in the cache for good.

        Nothing changes before `num_computed_tokens` has reached `Sequence.next_commit`, so that it need not be called
        until then.
        """
        ...

    def release(self, sequence: Sequence) -> None:
        """Take back everything that the sequence has or has reserved, after a last `commit`."""
        ...

    def take_copies(self) -> tuple[BlockCopy, ...]:
        """Return the copies to make, one after another, before the next step computes; each is returned once.

        They are of what sequences that have grown had shared until then, and of what makes way for them. Their order
        counts, as a later one may write what an earlier one reads. Nothing computes in what is to be read until then.
        """
        ...

    def check_integrity(self, running: Iterable[Sequence]) -> None:
        """Assert, between two steps, that every block is accounted for and no sequence's content is in danger.

        Args:
            running: all sequences that have been admitted and not released.
        """
        ...


def make_kv_cache(spec: EngineSpec, *, reuse: bool) -> KVCache:
    """Return the empty KV cache of an engine.

    Args:
        spec: says which kind, and how large.
        reuse: whether what one sequence has computed is found by others.
    """
    if spec.kv_kind is KVKind.SLOTS:
        return SlotManager(spec.num_blocks, spec.block_size, hash_block_size=SLOT_HASH_BLOCK_SIZE, reuse=reuse)
    return BlockManager(spec.num_blocks, spec.block_size, reuse=reuse)
