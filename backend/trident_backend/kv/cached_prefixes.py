"""Finds prefixes in slots by their content.

Owns which slots hold which beginnings, one hash block after another, and when each slot was last used. Never knows to
which sequence a slot belongs, and never decides what is evicted.
"""

from __future__ import annotations

from collections.abc import Collection, Set
from typing import NamedTuple

from trident_backend.kv.prefix_cache import block_digests
from trident_backend.sequences.sequence import Sequence


class Content(NamedTuple):
    """The prefix that is cached in a slot.

    Args:
        digests: of its hash blocks, each of which stands for all before it too.
        last_use: when it was last used, as a count of uses.
    """

    digests: tuple[bytes, ...]
    last_use: int


class CachedPrefixes:
    """The prefixes cached in slots.

    Args:
        num_slots: slots in the cache, all of them empty.
        hash_block_size: tokens that are hashed together; a shorter rest is not cached.
    """

    def __init__(self, num_slots: int, hash_block_size: int) -> None:
        self.hash_block_size = hash_block_size
        self._digests: list[list[bytes]] = [[] for _ in range(num_slots)]
        self._slots: dict[bytes, set[int]] = {}
        self._last_uses = [0] * num_slots
        self._num_uses = 0

    def is_empty(self, slot: int) -> bool:
        """Return whether nothing is cached in a slot."""
        return not self._digests[slot]

    def content(self, slot: int) -> Content:
        """Return all that is cached in a slot."""
        return Content(tuple(self._digests[slot]), self._last_uses[slot])

    def longest(self, sequence: Sequence, num_tokens: int) -> tuple[int, Set[int]]:
        """Return how many of a sequence's first `num_tokens` tokens are cached, and the slots that hold so many."""
        if not self._slots:
            return 0, frozenset()
        num_found, slots = 0, set[int]()
        for digest in self._of(sequence, num_tokens):
            if digest not in self._slots:
                break
            num_found, slots = num_found + 1, self._slots[digest]
        return num_found * self.hash_block_size, frozenset(slots)

    def holds(self, slot: int, sequence: Sequence, num_tokens: int) -> bool:
        """Return whether a slot holds the hash blocks, at least one, of a sequence's first `num_tokens` tokens."""
        digests = self._of(sequence, num_tokens)
        return bool(digests) and slot in self._slots.get(digests[-1], ())

    def is_mostly(self, slot: int, num_tokens: int) -> bool:
        """Return whether a slot's first `num_tokens` tokens are half of what is cached in it, or more."""
        return 2 * (num_tokens // self.hash_block_size) >= len(self._digests[slot])

    def is_duplicate(self, slot: int) -> bool:
        """Return whether another slot holds all that is cached in this one; an empty slot counts as one."""
        digests = self._digests[slot]
        return not digests or len(self._slots[digests[-1]]) > 1

    def shortest(self, slots: Collection[int]) -> int | None:
        """Return the slot in which least is cached, of equals the lowest; None if there is no slot."""
        return min(slots, key=lambda slot: (len(self._digests[slot]), slot), default=None)

    def oldest(self, slots: Collection[int]) -> int | None:
        """Return the least recently used slot; None if there is no slot."""
        return min(slots, key=self._last_uses.__getitem__, default=None)

    def use(self, slot: int) -> None:
        """Make a slot the most recently used."""
        self._num_uses += 1
        self._last_uses[slot] = self._num_uses

    def extend(self, slot: int, sequence: Sequence, num_tokens: int) -> None:
        """Cache a sequence's first `num_tokens` tokens in a slot; what was cached there is how they begin."""
        if num_tokens // self.hash_block_size > len(self._digests[slot]):
            self._add(slot, self._of(sequence, num_tokens)[len(self._digests[slot]) :])

    def put(self, slot: int, content: Content) -> None:
        """Note that an empty slot has the content of another, and was last used when that was."""
        assert self.is_empty(slot)
        self._add(slot, content.digests)
        self._last_uses[slot] = content.last_use

    def _add(self, slot: int, digests: Collection[bytes]) -> None:
        self._digests[slot] += digests
        for digest in digests:
            self._slots.setdefault(digest, set()).add(slot)

    def truncate(self, slot: int, num_tokens: int = 0) -> None:
        """Forget all that is cached in a slot but the hash blocks of its first `num_tokens` tokens."""
        digests, num_hash_blocks = self._digests[slot], num_tokens // self.hash_block_size
        for digest in digests[num_hash_blocks:]:
            self._slots[digest].remove(slot)
            if not self._slots[digest]:
                del self._slots[digest]
        del digests[num_hash_blocks:]

    def _of(self, sequence: Sequence, num_tokens: int) -> list[bytes]:
        num_hash_blocks = num_tokens // self.hash_block_size
        return block_digests(sequence, num_hash_blocks, self.hash_block_size)[:num_hash_blocks]

    def check_integrity(self) -> None:
        """Assert that the slots of every digest are those that have it."""
        slots: dict[bytes, set[int]] = {}
        for slot, digests in enumerate(self._digests):
            for digest in digests:
                slots.setdefault(digest, set()).add(slot)
        assert slots == self._slots

    def check_user(self, slot: int, sequence: Sequence) -> None:
        """Assert that what is cached in a slot is what the sequence that has it has computed or found."""
        assert len(self._digests[slot]) * self.hash_block_size <= sequence.num_computed_tokens
        assert self._digests[slot] == self._of(sequence, len(self._digests[slot]) * self.hash_block_size)
