"""The KV cache of engines that give every sequence one slot.

`SlotManager` alone says whose a slot is, which slots still hold a known prefix, and what is copied from one to another;
it never sees a key or a value, and never decides who goes first.
"""

from __future__ import annotations

import heapq
from collections import Counter, OrderedDict
from collections.abc import Iterable, Set
from dataclasses import dataclass
from typing import NamedTuple

from trident_backend import prompt_scores
from trident_backend.prefix_digests import block_digests
from trident_backend.sequence import Sequence
from trident_backend.siblings import shares_prompt


@dataclass
class _Account:
    """Of one sequence: its slot; how many tokens it has from another one; which that is, until they are copied."""

    slot: int
    num_copied: int = 0
    source: int | None = None


class _Found(NamedTuple):
    """A beginning of a sequence: its tokens, a slot to copy it from, and those that it could be left in."""

    num_tokens: int = 0
    source: int | None = None
    holders: Set[int] = frozenset()


class SlotManager:
    """KV cache of equal slots, each as long as the longest sequence: whoever is admitted has a whole one to its end.

    So growth never fails, nobody is preempted, and `max_utilization` admits as many as `guaranteed_no_evict`: a slot is
    a slot, however little of it a sequence will use.

    What a sequence has computed is known by content, granule by granule, while it runs and after it has gone. A new one
    that begins alike takes over a free slot that holds little else, in place. Any other gets the lowest blank slot, as
    engines compute every slot up to the highest in use; where none is blank, the one whose content has not been used
    for longest. Unless it has the same beginning, that is copied from where it was found, as is a parent's prompt,
    token by token. The copy is made when the sequence first grows; until then its source is given to nobody.

    Args:
        num_slots: slots in the cache.
        slot_size: tokens in a slot.
        granule: tokens that are known by content together.
        reuse: whether tokens are known by content at all.
    """

    def __init__(self, num_slots: int, slot_size: int, *, granule: int, reuse: bool = True) -> None:
        self.num_blocks = num_slots
        self.block_size = slot_size
        self.num_reused = 0
        self._granule = granule
        self._reuse = reuse
        self._blank = list(range(num_slots))
        self._kept: OrderedDict[int, None] = OrderedDict()
        self._known: list[list[bytes]] = [[] for _ in range(num_slots)]
        self._holders: dict[bytes, set[int]] = {}
        self._num_readers = [0] * num_slots
        self._accounts: dict[Sequence, _Account] = {}
        self._users: dict[int, Sequence] = {}
        self._copies: list[tuple[int, int, int]] = []

    @property
    def num_free(self) -> int:
        """Slots that no sequence has or is still to copy from; some may hold a prefix that can be used again."""
        return len(self._blank) + len(self._kept)

    @property
    def num_used(self) -> int:
        """Slots that a sequence has or is still to copy from."""
        return self.num_blocks - self.num_free

    def fits(self, num_tokens: int) -> bool:
        """See `KVCache.fits`."""
        return num_tokens <= self.block_size

    def admit(self, sequence: Sequence, num_tokens: int) -> int | None:
        """See `KVCache.admit`."""
        assert sequence not in self._accounts
        assert self.fits(num_tokens)
        found = self._find(sequence)
        slot = self._choose(found)
        if slot is None:
            return None
        in_place = slot in found.holders
        self._take(slot, found.num_tokens if in_place else 0)
        self._users[slot] = sequence
        self._accounts[sequence] = account = _Account(slot)
        if found.source is not None and not in_place:
            account.num_copied, account.source = found.num_tokens, found.source
            self._num_readers[found.source] += 1
            self._kept.pop(found.source, None)
        sequence.block_table.append(slot)
        self.num_reused += found.source is not None
        return found.num_tokens

    def num_cached(self, sequence: Sequence) -> int:
        """See `KVCache.num_cached`."""
        return self._find_prefix(sequence).num_tokens

    def _find(self, sequence: Sequence) -> _Found:
        """As much as there is of a sequence's beginning.

        A parent's prompt counts once the parent has computed in its slot: what it has from another is there by then.
        """
        parent = sequence.parent
        if parent is not None and shares_prompt(sequence):
            account = self._accounts.get(parent)
            if account is not None and self._is_filled(parent, account):
                num_shared = sequence.num_prompt_tokens - 1
                return _Found(num_shared, account.slot) if num_shared else _Found()
        return self._find_prefix(sequence)

    def _find_prefix(self, sequence: Sequence) -> _Found:
        if not (self._reuse and sequence.reuse_cache and self._holders):
            return _Found()
        num_granules = prompt_scores.max_cached_tokens(sequence) // self._granule
        num_found, holders = 0, set[int]()
        for digest in block_digests(sequence, num_granules, self._granule)[:num_granules]:
            if digest not in self._holders:
                break
            num_found, holders = num_found + 1, self._holders[digest]
        # A free one first, and of those the one with least besides.
        source = min(holders & self._kept.keys(), key=lambda slot: (len(self._known[slot]), slot), default=None)
        return _Found(num_found * self._granule, min(holders, default=None) if source is None else source, holders)

    def _choose(self, found: _Found) -> int | None:
        """The slot for a sequence of which so much was found; None if none is free."""
        source, num_granules = found.source, found.num_tokens // self._granule
        if source is not None and source in self._kept and 2 * num_granules >= len(self._known[source]):
            return source
        if self._blank:
            return self._blank[0]
        return next(iter(self._kept), None)

    def _take(self, slot: int, num_tokens: int) -> None:
        """It is no longer free, and nothing but its first tokens will last."""
        if slot in self._kept:
            del self._kept[slot]
        else:
            assert self._blank[0] == slot
            heapq.heappop(self._blank)
        known, num_granules = self._known[slot], num_tokens // self._granule
        for digest in known[num_granules:]:
            self._holders[digest].remove(slot)
            if not self._holders[digest]:
                del self._holders[digest]
        del known[num_granules:]

    def grow(self, sequence: Sequence, num_tokens: int) -> bool:
        """See `KVCache.grow`; only what does not fit into a slot fails."""
        account = self._accounts[sequence]
        if account.source is not None:
            self._copies.append((account.source, account.slot, account.num_copied))
            self._let_go(account)
        return num_tokens <= self.block_size

    def _let_go(self, account: _Account) -> None:
        """It reads its source no longer: what is copied by now is copied before anybody writes there."""
        source, account.source = account.source, None
        if source is not None:
            self._num_readers[source] -= 1
            self._free(source)

    def _free(self, slot: int) -> None:
        """Unless somebody has it or is to read it."""
        if slot in self._users or self._num_readers[slot]:
            return
        if self._known[slot]:
            self._kept[slot] = None
        else:
            heapq.heappush(self._blank, slot)

    def take_copies(self) -> tuple[tuple[int, int, int], ...]:
        """See `KVCache.take_copies`."""
        copies = tuple(self._copies)
        self._copies.clear()
        return copies

    @staticmethod
    def _is_filled(sequence: Sequence, account: _Account) -> bool:
        """Whether its computed tokens are in its slot for sure: the copy of another's may be to come, or failed."""
        return sequence.num_computed_tokens > account.num_copied

    def commit(self, sequence: Sequence) -> None:
        """See `KVCache.commit`."""
        account = self._accounts[sequence]
        known = self._known[account.slot]
        num_full = sequence.num_computed_tokens // self._granule
        if num_full <= len(known) or not (self._reuse and sequence.reuse_cache and self._is_filled(sequence, account)):
            return
        for digest in block_digests(sequence, num_full, self._granule)[len(known) : num_full]:
            known.append(digest)
            self._holders.setdefault(digest, set()).add(account.slot)

    def release(self, sequence: Sequence) -> None:
        """See `KVCache.release`; what the sequence has computed is kept for others."""
        self.commit(sequence)
        account = self._accounts.pop(sequence)
        self._let_go(account)
        del self._users[account.slot]
        self._free(account.slot)
        sequence.block_table.clear()

    def check_integrity(self, running: Iterable[Sequence]) -> None:
        """Assert that every slot is free, read, or one sequence's, and that everything known of it is there."""
        running = set(running)
        assert running == set(self._accounts) == set(self._users.values())
        assert not self._copies
        readers = Counter(account.source for account in self._accounts.values() if account.source is not None)
        assert [readers[slot] for slot in range(self.num_blocks)] == self._num_readers
        held = self._users.keys() | readers.keys()
        assert sorted([*held, *self._blank, *self._kept]) == list(range(self.num_blocks))
        assert all(not self._known[slot] for slot in self._blank)
        assert all(self._known[slot] for slot in self._kept)
        holders: dict[bytes, set[int]] = {}
        for slot, known in enumerate(self._known):
            for digest in known:
                holders.setdefault(digest, set()).add(slot)
        assert holders == self._holders
        for sequence, account in self._accounts.items():
            self._check_account(sequence, account)

    def _check_account(self, sequence: Sequence, account: _Account) -> None:
        """Assert that what is known of its slot is the sequence's own, and that what it is to read is still there."""
        assert sequence.block_table == [account.slot]
        assert self._users[account.slot] is sequence
        assert account.num_copied <= sequence.num_computed_tokens <= self.block_size
        known = self._known[account.slot]
        assert len(known) * self._granule <= sequence.num_computed_tokens
        assert known == block_digests(sequence, len(known), self._granule)[: len(known)]
        assert not known or (self._reuse and sequence.reuse_cache and self._is_filled(sequence, account))
        if account.source is not None:
            assert sequence.num_computed_tokens == account.num_copied > 0
            reader, user = sequence.token_ids[: account.num_copied], self._users.get(account.source)
            assert user is None or user.token_ids[: account.num_copied] == reader
            num_granules = account.num_copied // self._granule
            digests = block_digests(sequence, num_granules, self._granule)[:num_granules]
            assert sequence.parent is not None or self._known[account.source][:num_granules] == digests
