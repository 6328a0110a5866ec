"""What is known of the content of slots.

Owns which slot holds which sequence's beginning, granule by granule, and when each was last of use. Never knows whose a
slot is, and never decides what is kept.
"""

from __future__ import annotations

from collections.abc import Collection, Set
from typing import NamedTuple

from trident_backend.kv.prefix_digests import block_digests
from trident_backend.sequences.sequence import Sequence


class Content(NamedTuple):
    """Of a slot: the digests of its granules, each of which stands for all before it too; when it was last of use."""

    digests: tuple[bytes, ...]
    last_use: int


class KnownPrefixes:
    """The prefixes in slots, by content.

    Args:
        num_slots: slots in the cache; nothing is known of them.
        granule: tokens that are known together; whatever is less is not known.
    """

    def __init__(self, num_slots: int, granule: int) -> None:
        self.granule = granule
        self._digests: list[list[bytes]] = [[] for _ in range(num_slots)]
        self._holders: dict[bytes, set[int]] = {}
        self._last_uses = [0] * num_slots
        self._num_uses = 0

    def is_blank(self, slot: int) -> bool:
        """Whether nothing is known of a slot."""
        return not self._digests[slot]

    def content(self, slot: int) -> Content:
        """All that is known of a slot."""
        return Content(tuple(self._digests[slot]), self._last_uses[slot])

    def longest(self, sequence: Sequence, num_tokens: int) -> tuple[int, Set[int]]:
        """How many of a sequence's first `num_tokens` tokens are in a slot, and the slots that hold so many."""
        if not self._holders:
            return 0, frozenset()
        num_found, holders = 0, set[int]()
        for digest in self._of(sequence, num_tokens):
            if digest not in self._holders:
                break
            num_found, holders = num_found + 1, self._holders[digest]
        return num_found * self.granule, frozenset(holders)

    def holds(self, slot: int, sequence: Sequence, num_tokens: int) -> bool:
        """Whether the whole granules of a sequence's first `num_tokens` tokens, at least one, are known in a slot."""
        digests = self._of(sequence, num_tokens)
        return bool(digests) and slot in self._holders.get(digests[-1], ())

    def is_mostly(self, slot: int, num_tokens: int) -> bool:
        """Whether half of what is known of a slot, or more, is its first `num_tokens` tokens."""
        return 2 * (num_tokens // self.granule) >= len(self._digests[slot])

    def is_elsewhere(self, slot: int) -> bool:
        """Whether another slot holds all that is known of this one, if only because that is nothing."""
        digests = self._digests[slot]
        return not digests or len(self._holders[digests[-1]]) > 1

    def shortest(self, slots: Collection[int]) -> int | None:
        """The slot of which least is known, of equals the lowest; None of none."""
        return min(slots, key=lambda slot: (len(self._digests[slot]), slot), default=None)

    def oldest(self, slots: Collection[int]) -> int | None:
        """The slot whose last use is longest ago; None of none."""
        return min(slots, key=self._last_uses.__getitem__, default=None)

    def use(self, slot: int) -> None:
        """It has been of use just now."""
        self._num_uses += 1
        self._last_uses[slot] = self._num_uses

    def learn(self, slot: int, sequence: Sequence, num_tokens: int) -> None:
        """A slot holds a sequence's first `num_tokens` tokens; what was known of it is how they begin."""
        if num_tokens // self.granule > len(self._digests[slot]):
            self._add(slot, self._of(sequence, num_tokens)[len(self._digests[slot]) :])

    def put(self, slot: int, content: Content) -> None:
        """A blank slot holds what was in another, and was last of use when that was."""
        assert self.is_blank(slot)
        self._add(slot, content.digests)
        self._last_uses[slot] = content.last_use

    def _add(self, slot: int, digests: Collection[bytes]) -> None:
        self._digests[slot] += digests
        for digest in digests:
            self._holders.setdefault(digest, set()).add(slot)

    def forget(self, slot: int, num_left: int = 0) -> None:
        """Nothing but a slot's first `num_left` tokens will last."""
        digests, num_granules = self._digests[slot], num_left // self.granule
        for digest in digests[num_granules:]:
            self._holders[digest].remove(slot)
            if not self._holders[digest]:
                del self._holders[digest]
        del digests[num_granules:]

    def _of(self, sequence: Sequence, num_tokens: int) -> list[bytes]:
        num_granules = num_tokens // self.granule
        return block_digests(sequence, num_granules, self.granule)[:num_granules]

    def check_integrity(self) -> None:
        """Assert that the holders of every digest are those that have it."""
        holders: dict[bytes, set[int]] = {}
        for slot, digests in enumerate(self._digests):
            for digest in digests:
                holders.setdefault(digest, set()).add(slot)
        assert holders == self._holders

    def check_user(self, slot: int, sequence: Sequence) -> None:
        """Assert that what is known of a slot is what its user has computed or found."""
        assert len(self._digests[slot]) * self.granule <= sequence.num_computed_tokens
        assert self._digests[slot] == self._of(sequence, len(self._digests[slot]) * self.granule)
