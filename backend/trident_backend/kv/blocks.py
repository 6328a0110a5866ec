"""The paged KV cache.

Owns which block belongs to which sequence, how many blocks are reserved for each, and which evictable blocks still hold
a cached prefix; `BlockManager` alone changes block tables and reference counts. Never sees a key or a value, and never
decides which sequence goes first.
"""

from __future__ import annotations

import sys
from collections import Counter, OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass

from trident_backend.kv.prefix_cache import PrefixCache
from trident_backend.sequences import prompt_scores
from trident_backend.sequences.sequence import Sequence
from trident_backend.sequences.siblings import shares_prompt
from trident_backend.sequences.steps import BlockCopy


@dataclass
class _Account:
    """The blocks of one sequence.

    Args:
        num_reserved: how many it may have in all without asking.
        num_committed: how many of its first are cached under their digests, or need not be.
        num_copied_on_write: 1 if the last in its table is shared and must be replaced by a copy before it writes.
    """

    num_reserved: int
    num_committed: int
    num_copied_on_write: int = 0

    def num_outstanding(self, num_allocated: int) -> int:
        """Return how many of the reserved blocks are still to be allocated to a table of so many."""
        return max(0, self.num_reserved - num_allocated + self.num_copied_on_write)


class BlockManager:
    """A `KVCache` of equal blocks from one pool: reserved when a sequence is admitted, allocated as it grows.

    Full blocks are cached by content: a new sequence starts with the blocks of its longest cached prefix, and a block
    that no sequence uses any more is evictable, the least recently used first. Siblings share their prompt's blocks,
    cached or not; the last one, if it is not full, copy-on-write: a sibling gets a copy before it writes.

    Args:
        num_blocks: blocks in the pool.
        block_size: tokens in a block.
        reuse: whether blocks are cached by content at all.
    """

    def __init__(self, num_blocks: int, block_size: int, *, reuse: bool = True) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.num_reused = 0
        self._reuse = reuse
        self._ref_counts = [0] * num_blocks
        self._free = list(range(num_blocks - 1, -1, -1))
        #: Blocks that no sequence uses and that are cached, the least recently used first.
        self._evictable: OrderedDict[int, None] = OrderedDict()
        self._prefixes = PrefixCache(block_size)
        self._accounts: dict[Sequence, _Account] = {}
        self._copying_on_write: set[Sequence] = set()
        self._copies: list[BlockCopy] = []
        self._num_outstanding = 0

    @property
    def num_free(self) -> int:
        """Blocks that no sequence uses; some may still hold a prefix that can be used again."""
        return len(self._free) + len(self._evictable)

    @property
    def num_used(self) -> int:
        """Blocks that belong to at least one sequence."""
        return self.num_blocks - self.num_free

    def blocks_for(self, num_tokens: int) -> int:
        """Return how many blocks hold `num_tokens` tokens."""
        return -(-num_tokens // self.block_size)

    def fits(self, num_tokens: int) -> bool:
        """Return whether one sequence of this length fits into an empty cache."""
        return self.blocks_for(num_tokens) <= self.num_blocks

    def admit(self, sequence: Sequence, num_tokens: int) -> int | None:
        """Reserve blocks for the sequence's first `num_tokens` tokens, as `KVCache.admit` says."""
        assert sequence not in self._accounts
        if shares_prompt(sequence) and sequence.parent in self._accounts:
            num_cached = sequence.num_prompt_tokens - 1
            shared = sequence.parent.block_table[: self.blocks_for(num_cached)].tolist()
        else:
            shared = self._find_prefix(sequence)
            num_cached = len(shared) * self.block_size
        num_full = num_cached // self.block_size
        account = _Account(self.blocks_for(num_tokens), num_full, len(shared) - num_full)
        num_outstanding = account.num_outstanding(len(shared))
        num_revived = sum(not self._ref_counts[block] for block in shared)
        if num_outstanding + num_revived > self.num_free - self._num_outstanding:
            return None
        for block in shared:
            if not self._ref_counts[block]:
                del self._evictable[block]
            self._ref_counts[block] += 1
        sequence.block_table.extend(shared)
        if account.num_copied_on_write:
            self._copying_on_write.add(sequence)
        self.num_reused += num_full
        self._num_outstanding += num_outstanding
        self._accounts[sequence] = account
        self._set_next_commit(sequence, num_full)
        return num_cached

    def num_cached(self, sequence: Sequence) -> int:
        """Return how many of a sequence's tokens it would find in the cache now."""
        return len(self._find_prefix(sequence)) * self.block_size

    def _find_prefix(self, sequence: Sequence) -> list[int]:
        if not (self._reuse and sequence.reuse_cache):
            return []
        return self._prefixes.find(sequence, prompt_scores.max_cached_tokens(sequence))

    def grow(self, sequence: Sequence, num_tokens: int) -> bool:
        """Allocate blocks for the first `num_tokens` tokens, as `KVCache.grow` says."""
        table = sequence.block_table
        if sequence in self._copying_on_write:
            self._copy_on_write(sequence)
        needed = -(-num_tokens // self.block_size)
        while len(table) < needed:
            if len(table) < self._accounts[sequence].num_reserved:
                self._num_outstanding -= 1
            elif self.num_free <= self._num_outstanding:
                return False
            table.append(self._allocate())
        sequence.num_allocated_tokens = len(table) * self.block_size
        return True

    def _copy_on_write(self, sequence: Sequence) -> None:
        """Replace the shared last block by a copy, which is reserved already, before the sequence writes to it."""
        self._copying_on_write.remove(sequence)
        self._accounts[sequence].num_copied_on_write = 0
        self._num_outstanding -= 1
        block = self._allocate()
        self._copies.append(BlockCopy(sequence.block_table[-1], block, self.block_size))
        sequence.block_table[-1] = block

    def take_copies(self) -> tuple[BlockCopy, ...]:
        """Return the copies that the next step begins with, and free what only they still needed."""
        copies = tuple(self._copies)
        self._copies.clear()
        # Not before: a block that is still to be read must not be allocated to a sequence that writes.
        for source, *_ in copies:
            self._drop(source)
        return copies

    def _allocate(self) -> int:
        if self._free:
            block = self._free.pop()
        else:
            block, _ = self._evictable.popitem(last=False)
            self._prefixes.remove(block)
        self._ref_counts[block] = 1
        return block

    def commit(self, sequence: Sequence) -> None:
        """Cache the full blocks that the sequence has computed, as `KVCache.commit` says."""
        account = self._accounts[sequence]
        num_full = sequence.num_computed_tokens // self.block_size
        if num_full == account.num_committed or not (self._reuse and sequence.reuse_cache):
            return
        self._prefixes.add(sequence, account.num_committed, num_full)
        account.num_committed = num_full
        self._set_next_commit(sequence, num_full)

    def _set_next_commit(self, sequence: Sequence, num_full: int) -> None:
        can_commit = self._reuse and sequence.reuse_cache
        sequence.next_commit = (num_full + 1) * self.block_size if can_commit else sys.maxsize

    def release(self, sequence: Sequence) -> None:
        """Take back all blocks of the sequence; those that are cached become evictable."""
        self.commit(sequence)
        self._num_outstanding -= self._accounts.pop(sequence).num_outstanding(len(sequence.block_table))
        self._copying_on_write.discard(sequence)
        # The last blocks first: a prefix is of no use without its beginning, so that must be evicted last.
        for block in reversed(sequence.block_table):
            self._drop(block)
        sequence.block_table.clear()
        sequence.num_allocated_tokens = 0

    def _drop(self, block: int) -> None:
        self._ref_counts[block] -= 1
        if not self._ref_counts[block]:
            if block in self._prefixes:
                self._evictable[block] = None
            else:
                self._free.append(block)

    def check_integrity(self, running: Iterable[Sequence]) -> None:
        """Assert that every block is free or counted, every reservation can be met, and no block shared wrongly."""
        running = list(running)
        ref_counts = Counter(block for sequence in running for block in sequence.block_table)
        assert [ref_counts[block] for block in range(self.num_blocks)] == self._ref_counts
        assert sorted([*ref_counts, *self._free, *self._evictable]) == list(range(self.num_blocks))
        assert set(running) == set(self._accounts)
        self._prefixes.check_integrity(self._free, self._evictable)
        outstanding = [account.num_outstanding(len(each.block_table)) for each, account in self._accounts.items()]
        assert self._num_outstanding == sum(outstanding) <= self.num_free
        assert not self._copies
        assert self._copying_on_write == {
            each for each, account in self._accounts.items() if account.num_copied_on_write
        }
        users: dict[int, list[tuple[Sequence, int]]] = {}
        for sequence in running:
            self._check_table(sequence)
            for index, block in enumerate(sequence.block_table):
                if ref_counts[block] > 1:
                    users.setdefault(block, []).append((sequence, index))
        for shared in users.values():
            self._check_shared(shared)

    def _check_table(self, sequence: Sequence) -> None:
        """Assert that a sequence has blocks for what it has computed, and that it asks the cache whenever it must."""
        assert sequence.num_computed_tokens <= len(sequence.block_table) * self.block_size
        num_allocated = 0 if sequence in self._copying_on_write else len(sequence.block_table) * self.block_size
        assert sequence.num_allocated_tokens <= num_allocated
        if self._reuse and sequence.reuse_cache:
            assert sequence.next_commit == (self._accounts[sequence].num_committed + 1) * self.block_size

    def _check_shared(self, users: list[tuple[Sequence, int]]) -> None:
        """Assert that all users of a block have the same in it, and that those that may write there copy it first.

        Args:
            users: sequences, and where the block is in their tables.
        """
        assert len({index for _, index in users}) == 1
        contents = []
        num_writers = num_readers = 0
        for sequence, index in users:
            end = min((index + 1) * self.block_size, sequence.num_computed_tokens)
            contents.append((end, sequence.token_ids[:end], sequence.cache_salt))
            if not (sequence in self._copying_on_write and index == len(sequence.block_table) - 1):
                num_writers += end < (index + 1) * self.block_size
                num_readers += 1
        assert not num_writers or num_readers == 1
        _, whole, salt = max(contents)
        assert all(token_ids == whole[:end] and one == salt for end, token_ids, one in contents)
        families = {sequence.parent or sequence for sequence, _ in users}
        assert len(families) == 1 or all(sequence.reuse_cache for sequence, _ in users)
