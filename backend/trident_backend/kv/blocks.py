"""The paged KV cache.

`BlockManager` alone changes block tables and reference counts. It owns which block belongs to whom, what has been
promised to whom, and which free blocks still hold a known prefix; it never sees a key or a value, and never decides who
goes first.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass

from trident_backend.kv.prefix_digests import block_digests
from trident_backend.sequences import prompt_scores
from trident_backend.sequences.sequence import Sequence
from trident_backend.sequences.siblings import shares_prompt


@dataclass
class _Account:
    """Of one sequence, in blocks: promised in all; known by content; 1 if the last in its table is only lent."""

    num_promised: int
    num_committed: int
    num_lent: int = 0

    def num_owed(self, num_held: int) -> int:
        """How many of its promise are not handed over, when its table holds so many."""
        return max(0, self.num_promised - num_held + self.num_lent)


class BlockManager:
    """Paged KV cache: a pool of equal blocks, promised to sequences when admitted, handed over as they grow.

    Full blocks are known by content: a new sequence starts with those it shares with others, and a block that nobody
    uses keeps its content until the room is needed, the least recently used first. Siblings share their prompt's blocks
    whatever is known by content; the last of them, if it is not full, until one writes into it, who gets a copy.

    Args:
        num_blocks: blocks in the pool.
        block_size: tokens in a block.
        reuse: whether blocks are known by content at all.
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
        self._borrowers: set[Sequence] = set()
        self._copies: list[tuple[int, int, int]] = []
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
        if shares_prompt(sequence) and sequence.parent in self._accounts:
            num_cached = sequence.num_prompt_tokens - 1
            shared = sequence.parent.block_table[: self.blocks_for(num_cached)].tolist()
        else:
            shared = self._find_prefix(sequence)
            num_cached = len(shared) * self.block_size
        num_full = num_cached // self.block_size
        account = _Account(self.blocks_for(num_tokens), num_full, len(shared) - num_full)
        num_owed = account.num_owed(len(shared))
        num_revived = sum(not self._num_users[block] for block in shared)
        if num_owed + num_revived > self.num_free - self._num_owed:
            return None
        for block in shared:
            if not self._num_users[block]:
                del self._kept[block]
            self._num_users[block] += 1
        sequence.block_table.extend(shared)
        if account.num_lent:
            self._borrowers.add(sequence)
        self.num_reused += num_full
        self._num_owed += num_owed
        self._accounts[sequence] = account
        return num_cached

    def num_cached(self, sequence: Sequence) -> int:
        """See `KVCache.num_cached`."""
        return len(self._find_prefix(sequence)) * self.block_size

    def _find_prefix(self, sequence: Sequence) -> list[int]:
        if not (self._reuse and sequence.reuse_cache and self._by_digest):
            return []
        num_blocks = prompt_scores.max_cached_tokens(sequence) // self.block_size
        found: list[int] = []
        for index in range(num_blocks):
            # One at a time: of a prompt that is not known, the first block alone is hashed.
            block = self._by_digest.get(block_digests(sequence, index + 1, self.block_size)[index])
            if block is None:
                break
            found.append(block)
        return found

    def grow(self, sequence: Sequence, num_tokens: int) -> bool:
        """See `KVCache.grow`."""
        table = sequence.block_table
        if self._borrowers and sequence in self._borrowers:
            self._copy_lent(sequence)
        needed = -(-num_tokens // self.block_size)
        while len(table) < needed:
            if len(table) < self._accounts[sequence].num_promised:
                self._num_owed -= 1
            elif self.num_free <= self._num_owed:
                return False
            table.append(self._take())
        return True

    def _copy_lent(self, sequence: Sequence) -> None:
        """It is about to write: its own block, which is within its promise, in place of the lent one."""
        self._borrowers.remove(sequence)
        self._accounts[sequence].num_lent = 0
        self._num_owed -= 1
        block = self._take()
        self._copies.append((sequence.block_table[-1], block, self.block_size))
        sequence.block_table[-1] = block

    def take_copies(self) -> tuple[tuple[int, int, int], ...]:
        """See `KVCache.take_copies`."""
        copies = tuple(self._copies)
        self._copies.clear()
        # Not before: what is still to be read must not be given to somebody who writes.
        for source, *_ in copies:
            self._drop(source)
        return copies

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
        self._num_owed -= self._accounts.pop(sequence).num_owed(len(sequence.block_table))
        self._borrowers.discard(sequence)
        # The last blocks first: a prefix is of no use without its beginning, so that must be the last to go.
        for block in reversed(sequence.block_table):
            self._drop(block)
        sequence.block_table.clear()

    def _drop(self, block: int) -> None:
        self._num_users[block] -= 1
        if not self._num_users[block]:
            if block in self._digests:
                self._kept[block] = None
            else:
                self._blank.append(block)

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
        owed = (account.num_owed(len(sequence.block_table)) for sequence, account in self._accounts.items())
        assert self._num_owed == sum(owed) <= self.num_free
        assert not self._copies
        assert self._borrowers == {sequence for sequence, account in self._accounts.items() if account.num_lent}
        holders: dict[int, list[tuple[Sequence, int]]] = {}
        for sequence in running:
            assert sequence.num_computed_tokens <= len(sequence.block_table) * self.block_size
            for index, block in enumerate(sequence.block_table):
                if users[block] > 1:
                    holders.setdefault(block, []).append((sequence, index))
        for shared in holders.values():
            self._check_shared(shared)

    def _check_shared(self, holders: list[tuple[Sequence, int]]) -> None:
        """Assert that all who hold a block have the same in it, and that whoever may write there has only lent it."""
        assert len({index for _, index in holders}) == 1
        contents = []
        num_writers = num_readers = 0
        for sequence, index in holders:
            end = min((index + 1) * self.block_size, sequence.num_computed_tokens)
            contents.append((end, sequence.token_ids[:end], sequence.cache_salt))
            if not (sequence in self._borrowers and index == len(sequence.block_table) - 1):
                num_writers += end < (index + 1) * self.block_size
                num_readers += 1
        assert not num_writers or num_readers == 1
        _, whole, salt = max(contents)
        assert all(token_ids == whole[:end] and one == salt for end, token_ids, one in contents)
        families = {sequence.parent or sequence for sequence, _ in holders}
        assert len(families) == 1 or all(sequence.reuse_cache for sequence, _ in holders)
