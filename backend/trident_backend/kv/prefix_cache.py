"""Finds blocks by their content, so that equal prefixes are computed once.

Owns the digest of a block: of its tokens, of all blocks before it and of the salt. Two blocks of equal digest hold the
same keys and values. Owns too which block is cached under which digest. Never knows who uses a block.
"""

from __future__ import annotations

from array import array
from collections.abc import Collection
from hashlib import blake2b

from trident_backend.sequences.sequence import Sequence

#: Bytes; long enough that nobody finds a prompt that reads another's blocks.
_DIGEST_SIZE = 16


class PrefixCache:
    """The cached blocks of a pool, each under one digest.

    Args:
        block_size: tokens in a block.
    """

    def __init__(self, block_size: int) -> None:
        self._block_size = block_size
        self._blocks: dict[bytes, int] = {}
        self._digests: dict[int, bytes] = {}

    def __contains__(self, block: int) -> bool:
        return block in self._digests

    def find(self, sequence: Sequence, num_tokens: int) -> list[int]:
        """Return the blocks of a sequence's longest cached prefix.

        Args:
            sequence: whose beginning is looked for.
            num_tokens: the most tokens to find.
        """
        found: list[int] = []
        if self._blocks:
            for index in range(num_tokens // self._block_size):
                # One at a time: of a prompt that is not cached, only the first block is hashed.
                block = self._blocks.get(block_digests(sequence, index + 1, self._block_size)[index])
                if block is None:
                    break
                found.append(block)
        return found

    def add(self, sequence: Sequence, first: int, end: int) -> None:
        """Cache the sequence's full blocks from the `first` of its table up to `end`.

        Where two sequences computed the same content side by side, the first one's block stays the cached one.
        """
        digests = block_digests(sequence, end, self._block_size)
        for index in range(first, end):
            if digests[index] not in self._blocks:
                self._blocks[digests[index]] = sequence.block_table[index]
                self._digests[sequence.block_table[index]] = digests[index]

    def remove(self, block: int) -> None:
        """Forget a cached block."""
        del self._blocks[self._digests.pop(block)]

    def check_integrity(self, free: Collection[int], evictable: Collection[int]) -> None:
        """Assert that all evictable blocks are cached, no free ones are, and each digest names its one block."""
        assert {block: digest for digest, block in self._blocks.items()} == self._digests
        assert set(evictable) <= self._digests.keys()
        assert self._digests.keys().isdisjoint(free)


def block_digests(sequence: Sequence, num_blocks: int, block_size: int) -> list[bytes]:
    """Return the digests of the sequence's first full blocks, `num_blocks` of them or more; they are kept with it.

    Args:
        sequence: with at least `num_blocks * block_size` tokens.
        num_blocks: how many are wanted.
        block_size: tokens in a block.
    """
    digests = sequence.block_digests
    while len(digests) < num_blocks:
        start = len(digests) * block_size
        parent = digests[-1] if digests else sequence.cache_salt.encode()
        # The first block is told from all others, so that no salt can pose as a parent.
        person = b"block" if digests else b"first"
        tokens = array("i", sequence.token_ids[start : start + block_size]).tobytes()
        digests.append(blake2b(parent + tokens, digest_size=_DIGEST_SIZE, person=person).digest())
    return digests
