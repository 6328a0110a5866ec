"""The KV cache of engines that give every sequence one slot.

Owns to which sequence a slot belongs, which slots still hold a cached prefix, and what is copied from one to another.
Never sees a key or a value, and never decides which sequence goes first.

A decode call computes every slot up to the highest in use, and copying a slot takes a fraction of a step. So cached
prefixes make way for sequences that run.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Set
from dataclasses import dataclass
from typing import NamedTuple

from trident_backend.kv.cached_prefixes import CachedPrefixes
from trident_backend.kv.slot_moves import Move, SlotMoves
from trident_backend.sequences import prompt_scores
from trident_backend.sequences.sequence import Sequence
from trident_backend.sequences.siblings import shares_prompt
from trident_backend.sequences.steps import BlockCopy


@dataclass
class _Account:
    """The slot of one sequence.

    Args:
        slot: its own.
        num_found: tokens that it need not compute.
        source: the slot that these are copied from; None if they are in its own.
        replaces: the source, if its slot is to hold them instead; until it has computed.
        move: of what was cached in its slot; until it has computed.
        has_grown: whether its copies have been asked for.
    """

    slot: int
    num_found: int
    source: int | None = None
    replaces: int | None = None
    move: Move | None = None
    has_grown: bool = False

    @property
    def unread(self) -> int | None:
        """The source, as long as nothing may be written there."""
        return None if self.has_grown else self.source


class _Found(NamedTuple):
    """A beginning of a sequence: its tokens, a slot to copy it from, and the slots that it could be left in."""

    num_tokens: int = 0
    source: int | None = None
    slots: Set[int] = frozenset()


class SlotManager:
    """A `KVCache` of equal slots, each as long as the longest sequence: an admitted sequence has one until it ends.

    So growth never fails, no sequence is preempted, and both batching policies admit as many.

    A new sequence gets the lowest free slot. What is cached there moves to an empty slot or to the least recently used
    one, unless little else is lost or it is itself the oldest (`SlotMoves`). What a sequence has computed is cached by
    content, one hash block after another, while it runs and after it has ended. A new sequence that begins alike has
    that copied from where it is, unless that is its own slot, and has its parent's prompt copied token by token. If the
    source was a free slot that holds little else, it is empty once the new sequence has computed: a conversation that
    goes on is cached once.

    Copies are asked for when a sequence first grows; until then its source is not given to another sequence.

    Args:
        num_slots: slots in the cache.
        slot_size: tokens in a slot.
        hash_block_size: tokens that are hashed together.
        reuse: whether tokens are cached by content at all.
    """

    def __init__(self, num_slots: int, slot_size: int, *, hash_block_size: int, reuse: bool = True) -> None:
        self.num_blocks = num_slots
        self.block_size = slot_size
        self.num_reused = 0
        self._reuse = reuse
        self._prefixes = CachedPrefixes(num_slots, hash_block_size)
        self._copies: list[BlockCopy] = []
        self._moves = SlotMoves(self._prefixes, self._copies)
        self._free = set(range(num_slots))
        self._num_readers = [0] * num_slots
        self._accounts: dict[Sequence, _Account] = {}
        self._users: dict[int, Sequence] = {}

    @property
    def num_free(self) -> int:
        """Slots that no sequence has or still has to copy from; some may hold a prefix that can be used again."""
        return len(self._free)

    @property
    def num_used(self) -> int:
        """Slots that a sequence has or still has to copy from."""
        return self.num_blocks - self.num_free

    def fits(self, num_tokens: int) -> bool:
        """Return whether one sequence of this length fits into a slot."""
        return num_tokens <= self.block_size

    def admit(self, sequence: Sequence, num_tokens: int) -> int | None:
        """Give the sequence a slot, as `KVCache.admit` says."""
        assert sequence not in self._accounts
        assert self.fits(num_tokens)
        if not self._free:
            return None
        found, slot = self._find(sequence), min(self._free)
        self._free.remove(slot)
        self._users[slot] = sequence
        self._accounts[sequence] = account = _Account(slot, found.num_tokens)
        in_place = slot in found.slots
        if found.source is not None and not in_place:
            account.source, account.replaces = found.source, found.source if found.source in self._free else None
            self._num_readers[found.source] += 1
            self._free.discard(found.source)
        self._clear(account, found.num_tokens if in_place else 0)
        sequence.block_table.append(slot)
        sequence.next_commit = 0
        self.num_reused += found.source is not None
        return found.num_tokens

    def num_cached(self, sequence: Sequence) -> int:
        """Return how many of a sequence's tokens it would find in the cache now."""
        return self._find_prefix(sequence).num_tokens

    def _find(self, sequence: Sequence) -> _Found:
        """Return as much as there is of a sequence's beginning.

        A parent's prompt counts once the parent has computed in its slot: what was copied for it is there by then.
        """
        parent = sequence.parent
        if parent is not None and shares_prompt(sequence):
            account = self._accounts.get(parent)
            if account is not None and parent.num_computed_tokens > account.num_found:
                num_shared = sequence.num_prompt_tokens - 1
                return _Found(num_shared, account.slot) if num_shared else _Found()
        return self._find_prefix(sequence)

    def _find_prefix(self, sequence: Sequence) -> _Found:
        if not (self._reuse and sequence.reuse_cache):
            return _Found()
        num_found, slots = self._prefixes.longest(sequence, prompt_scores.max_cached_tokens(sequence))
        # A free one if there is one, and of these the one that holds least besides.
        source = self._prefixes.shortest(slots & self._free)
        return _Found(num_found, min(slots, default=None) if source is None else source, slots)

    def _clear(self, account: _Account, num_left: int) -> None:
        """Clear a sequence's slot: all that is cached there but its first `num_left` tokens moves, or is lost."""
        self._moves.send_on(account.slot, self._free)
        if not self._is_dispensable(account.slot, num_left):
            account.move = self._moves.begin(account.slot, self._free)
        self._prefixes.truncate(account.slot, num_left)

    def _is_dispensable(self, slot: int, num_left: int) -> bool:
        """Return whether little or nothing is lost if only a slot's first `num_left` tokens are left."""
        if self._prefixes.is_duplicate(slot) or (num_left and self._prefixes.is_mostly(slot, num_left)):
            return True
        replacing = (pair for pair in self._accounts.items() if pair[1].replaces == slot)
        return any(self._is_replaced(slot, *pair) for pair in replacing)

    def _is_replaced(self, slot: int, sequence: Sequence, account: _Account) -> bool:
        """Return whether a slot holds little but what was found of a sequence."""
        return self._prefixes.holds(slot, sequence, account.num_found) and self._prefixes.is_mostly(
            slot, account.num_found
        )

    def grow(self, sequence: Sequence, num_tokens: int) -> bool:
        """Ask for the sequence's copies when it first grows; False only for what does not fit into a slot."""
        account = self._accounts[sequence]
        if not account.has_grown:
            self._moves.copy(account.move, account.slot)
            if account.source is not None:
                self._copies.append(BlockCopy(account.source, account.slot, account.num_found))
            self._let_go(account)
        sequence.num_allocated_tokens = self.block_size
        return num_tokens <= self.block_size

    def _let_go(self, account: _Account) -> None:
        """Give up a sequence's source: what was asked for by now is copied before anything is written there."""
        source, account.has_grown = account.unread, True
        if source is not None:
            self._num_readers[source] -= 1
            self._put_back(source)

    def _put_back(self, slot: int) -> None:
        """Note that a slot was used just now, and free it unless a sequence has it or still has to read it."""
        self._prefixes.use(slot)
        if slot not in self._users and not self._num_readers[slot]:
            self._free.add(slot)

    def take_copies(self) -> tuple[BlockCopy, ...]:
        """Return the copies that the next step begins with."""
        copies = tuple(self._copies)
        self._copies.clear()
        return copies

    def commit(self, sequence: Sequence) -> None:
        """Cache what the sequence has computed, as `KVCache.commit` says; what was copied for it has arrived."""
        account = self._accounts[sequence]
        if sequence.num_computed_tokens <= account.num_found:
            return
        sequence.next_commit = sys.maxsize
        if self._reuse and sequence.reuse_cache:
            size = self._prefixes.hash_block_size
            self._prefixes.extend(account.slot, sequence, sequence.num_computed_tokens)
            sequence.next_commit = (sequence.num_computed_tokens // size + 1) * size
        self._moves.end(account.move, has_arrived=True)
        source, account.replaces = account.replaces, None
        if source is not None and source in self._free and self._is_replaced(source, sequence, account):
            self._prefixes.truncate(source)

    def release(self, sequence: Sequence) -> None:
        """Take back the sequence's slot; what it has computed stays cached."""
        self.commit(sequence)
        account = self._accounts.pop(sequence)
        self._moves.end(account.move, has_arrived=False)
        self._let_go(account)
        del self._users[account.slot]
        self._put_back(account.slot)
        sequence.block_table.clear()
        sequence.num_allocated_tokens = 0

    def check_integrity(self, running: Iterable[Sequence]) -> None:
        """Assert that every slot is free, read, or one sequence's, and that all that is cached is accounted for."""
        running, accounts = set(running), list(self._accounts.values())
        assert running == set(self._accounts) == set(self._users.values())
        assert not self._copies
        readers = Counter(account.unread for account in accounts if account.unread is not None)
        assert [readers[slot] for slot in range(self.num_blocks)] == self._num_readers
        assert sorted([*(self._users.keys() | readers.keys()), *self._free]) == list(range(self.num_blocks))
        self._moves.check_integrity([account.move for account in accounts if account.move is not None], self._free)
        self._prefixes.check_integrity()
        for sequence, account in self._accounts.items():
            self._check_account(sequence, account)

    def _check_account(self, sequence: Sequence, account: _Account) -> None:
        """Assert that what is cached in a sequence's slot is its own, and that what it has to read is still there."""
        assert sequence.block_table == [account.slot]
        assert self._users[account.slot] is sequence
        assert account.num_found <= sequence.num_computed_tokens <= self.block_size
        self._prefixes.check_user(account.slot, sequence)
        assert self._prefixes.is_empty(account.slot) or (self._reuse and sequence.reuse_cache)
        assert sequence.num_allocated_tokens == (self.block_size if account.has_grown else 0)
        if account.unread is not None:
            assert self._prefixes.is_empty(account.slot)
            assert sequence.num_computed_tokens == account.num_found > 0
            reader, user = sequence.token_ids[: account.num_found], self._users.get(account.unread)
            assert user is None or user.token_ids[: account.num_found] == reader
            assert sequence.parent is not None or self._prefixes.holds(account.unread, sequence, account.num_found)
