"""The KV cache as the scheduler sees it, and its paged form.

`BlockManager` alone changes block tables and reference counts. It owns which block belongs to whom, what has been
promised to whom, and which free blocks still hold a known prefix; it never sees a key or a value, and never decides who
goes first.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from trident_backend.prefix_digests import block_digests
from trident_backend.sequence import Sequence


class KVCache(Protocol):
    """Room for the keys and values of running sequences, however an engine lays them out."""

    def fits(self, num_tokens: int) -> bool:
        """Whether one sequence of this length fits into an empty cache."""
        ...

    def admit(self, sequence: Sequence, num_tokens: int) -> int | None:
        """Promise room for the sequence's first `num_tokens` tokens.

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


@dataclass
class _Account:
    num_promised: int
    num_committed: int


class BlockManager:
    """Paged KV cache: a pool of equal blocks, promised to sequences when admitted, handed over as they grow.

    Full blocks are known by content: a new sequence starts with those it shares with others, and a block that nobody
    uses keeps its content until the room is needed, the least recently used first.

    Args:
        num_blocks: blocks in the pool.
        block_size: tokens in a block.
        reuse: whether blocks are shared and kept at all.
    """

    def __init__(self, num_blocks: int, block_size: int, *, reuse: bool = True) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.num_reused = 0
        self._reuse = reuse
        self._num_users = [0] * num_blocks
        self._blank = list(range(num_blocks - 1, -1, -1))
        self._kept: OrderedDict[int, None] = OrderedDict()
        self._by_digest: dict[bytes, int] = {}
        self._digests: dict[int, bytes] = {}
        self._accounts: dict[Sequence, _Account] = {}
        self._num_owed = 0

    @property
    def num_free(self) -> int:
        """Blocks that no sequence uses; some may still hold a prefix that can be used again."""
        return len(self._blank) + len(self._kept)

    @property
    def num_used(self) -> int:
        """Blocks that belong to at least one sequence."""
        return self.num_blocks - self.num_free

    def blocks_for(self, num_tokens: int) -> int:
        """How many blocks hold `num_tokens` tokens."""
        return -(-num_tokens // self.block_size)

    def fits(self, num_tokens: int) -> bool:
        """See `KVCache.fits`."""
        return self.blocks_for(num_tokens) <= self.num_blocks

    def admit(self, sequence: Sequence, num_tokens: int) -> int | None:
        """See `KVCache.admit`."""
        assert sequence not in self._accounts
        shared = self._find_prefix(sequence)
        num_promised = self.blocks_for(num_tokens)
        num_owed = num_promised - len(shared)
        num_revived = sum(not self._num_users[block] for block in shared)
        if num_owed + num_revived > self.num_free - self._num_owed:
            return None
        for block in shared:
            if not self._num_users[block]:
                del self._kept[block]
            self._num_users[block] += 1
        sequence.block_table.extend(shared)
        self.num_reused += len(shared)
        self._num_owed += num_owed
        self._accounts[sequence] = _Account(num_promised, len(shared))
        return len(shared) * self.block_size

    def num_cached(self, sequence: Sequence) -> int:
        """See `KVCache.num_cached`."""
        return len(self._find_prefix(sequence)) * self.block_size

    def _find_prefix(self, sequence: Sequence) -> list[int]:
        if not (self._reuse and sequence.reuse_cache and self._by_digest):
            return []
        num_blocks = (sequence.num_tokens - 1) // self.block_size
        found: list[int] = []
        for digest in block_digests(sequence, num_blocks, self.block_size)[:num_blocks]:
            block = self._by_digest.get(digest)
            if block is None:
                break
            found.append(block)
        return found

    def grow(self, sequence: Sequence, num_tokens: int) -> bool:
        """See `KVCache.grow`."""
        table = sequence.block_table
        needed = -(-num_tokens // self.block_size)
        while len(table) < needed:
            if len(table) < self._accounts[sequence].num_promised:
                self._num_owed -= 1
            elif self.num_free <= self._num_owed:
                return False
            table.append(self._take())
        return True

    def _take(self) -> int:
        if self._blank:
            block = self._blank.pop()
        else:
            block, _ = self._kept.popitem(last=False)
            del self._by_digest[self._digests.pop(block)]
        self._num_users[block] = 1
        return block

    def commit(self, sequence: Sequence) -> None:
        """See `KVCache.commit`."""
        account = self._accounts[sequence]
        num_full = sequence.num_computed_tokens // self.block_size
        if num_full == account.num_committed or not (self._reuse and sequence.reuse_cache):
            return
        digests = block_digests(sequence, num_full, self.block_size)
        for index in range(account.num_committed, num_full):
            # Where two sequences computed the same content side by side, the first one's block is the known one.
            if digests[index] not in self._by_digest:
                self._by_digest[digests[index]] = sequence.block_table[index]
                self._digests[sequence.block_table[index]] = digests[index]
        account.num_committed = num_full

    def release(self, sequence: Sequence) -> None:
        """See `KVCache.release`; what the sequence has computed is kept for others."""
        self.commit(sequence)
        self._num_owed -= max(0, self._accounts.pop(sequence).num_promised - len(sequence.block_table))
        # The last blocks first: a prefix is of no use without its beginning, so that must be the last to go.
        for block in reversed(sequence.block_table):
            self._num_users[block] -= 1
            if not self._num_users[block]:
                if block in self._digests:
                    self._kept[block] = None
                else:
                    self._blank.append(block)
        sequence.block_table.clear()

    def check_integrity(self, running: Iterable[Sequence]) -> None:
        """Assert that every block is free or in use as counted, every promise kept, and no block shared wrongly."""
        running = list(running)
        users = Counter(block for sequence in running for block in sequence.block_table)
        assert [users[block] for block in range(self.num_blocks)] == self._num_users
        assert sorted([*users, *self._blank, *self._kept]) == list(range(self.num_blocks))
        assert set(running) == set(self._accounts)
        assert {block: digest for digest, block in self._by_digest.items()} == self._digests
        assert self._kept.keys() <= self._digests.keys()
        assert self._digests.keys().isdisjoint(self._blank)
        owed = (account.num_promised - len(sequence.block_table) for sequence, account in self._accounts.items())
        assert self._num_owed == sum(max(0, number) for number in owed) <= self.num_free
        contents: dict[int, tuple[str, list[int]]] = {}
        for sequence in running:
            assert sequence.num_computed_tokens <= len(sequence.block_table) * self.block_size
            for index, block in enumerate(sequence.block_table):
                if users[block] > 1:
                    content = sequence.cache_salt, sequence.token_ids[: (index + 1) * self.block_size]
                    assert contents.setdefault(block, content) == content
                    assert sequence.reuse_cache
                    assert (index + 1) * self.block_size <= sequence.num_computed_tokens
