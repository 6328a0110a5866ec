"""The KV cache as the scheduler sees it, and its paged form.

`BlockManager` alone changes block tables. It owns which block belongs to whom and what has been promised to whom; it
never sees a key or a value, and never decides who goes first.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from trident_backend.sequence import Sequence


class KVCache(Protocol):
    """Room for the keys and values of running sequences, however an engine lays them out."""

    def fits(self, num_tokens: int) -> bool:
        """Whether one sequence of this length fits into an empty cache."""
        ...

    def admit(self, sequence: Sequence) -> bool:
        """Promise room for all that the sequence may become; False, and nothing changed, if there is not enough."""
        ...

    def grow(self, sequence: Sequence, num_tokens: int) -> None:
        """Make room for the sequence's first `num_tokens` tokens, out of what was promised to it."""
        ...

    def release(self, sequence: Sequence) -> None:
        """Take back everything the sequence has and was promised."""
        ...


class BlockManager:
    """Paged KV cache: a pool of equal blocks, handed to sequences as they grow, promised to them when admitted.

    Args:
        num_blocks: blocks in the pool.
        block_size: tokens in a block.
    """

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._free = list(range(num_blocks - 1, -1, -1))
        self._num_unpromised = num_blocks
        self._promised: dict[Sequence, int] = {}

    @property
    def num_free(self) -> int:
        """Blocks that hold nothing."""
        return len(self._free)

    @property
    def num_used(self) -> int:
        """Blocks that belong to a sequence."""
        return self.num_blocks - len(self._free)

    def blocks_for(self, num_tokens: int) -> int:
        """How many blocks hold `num_tokens` tokens."""
        return -(-num_tokens // self.block_size)

    def fits(self, num_tokens: int) -> bool:
        """See `KVCache.fits`."""
        return self.blocks_for(num_tokens) <= self.num_blocks

    def admit(self, sequence: Sequence) -> bool:
        """See `KVCache.admit`."""
        assert sequence not in self._promised
        needed = self.blocks_for(sequence.max_len)
        if needed > self._num_unpromised:
            return False
        self._num_unpromised -= needed
        self._promised[sequence] = needed
        return True

    def grow(self, sequence: Sequence, num_tokens: int) -> None:
        """See `KVCache.grow`."""
        needed = self.blocks_for(num_tokens)
        assert needed <= self._promised[sequence]
        while len(sequence.block_table) < needed:
            sequence.block_table.append(self._free.pop())

    def release(self, sequence: Sequence) -> None:
        """See `KVCache.release`."""
        self._num_unpromised += self._promised.pop(sequence)
        self._free.extend(reversed(sequence.block_table))
        sequence.block_table.clear()

    def check_integrity(self, running: Iterable[Sequence]) -> None:
        """Assert that every block is free or in exactly one running sequence's table, and every promise is kept."""
        running = list(running)
        held = [block for sequence in running for block in sequence.block_table]
        assert sorted(held + self._free) == list(range(self.num_blocks))
        assert set(running) == set(self._promised)
        assert self._num_unpromised == self.num_blocks - sum(self._promised.values()) >= 0
        for sequence in running:
            assert len(sequence.block_table) <= self._promised[sequence]
            assert sequence.num_computed_tokens <= len(sequence.block_table) * self.block_size
