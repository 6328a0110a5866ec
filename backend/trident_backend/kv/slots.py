"""The KV cache of engines that give every sequence one slot.

`SlotManager` alone says whose a slot is, which slots still hold a known prefix, and what is copied from one to another;
it never sees a key or a value, and never decides who goes first.

A decode call computes every slot up to the highest in use, dead or alive, so those in use have to stay low whatever
is kept beside them. To copy a slot takes a fraction of a step. So what is kept makes way for what runs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Set
from dataclasses import dataclass
from typing import NamedTuple

from trident_backend.kv.known_prefixes import KnownPrefixes
from trident_backend.kv.slot_moves import Move, SlotMoves
from trident_backend.sequences import prompt_scores
from trident_backend.sequences.sequence import Sequence
from trident_backend.sequences.siblings import shares_prompt


@dataclass
class _Account:
    """Of one sequence.

    Args:
        slot: its own.
        num_found: tokens that it need not compute.
        source: the slot that these are copied from; None if they are in its own.
        replaces: the source, if its slot is to hold them instead; until it has computed.
        move: of what was in its slot; until it has computed.
        has_grown: its copies have been named.
    """

    slot: int
    num_found: int
    source: int | None = None
    replaces: int | None = None
    move: Move | None = None
    has_grown: bool = False

    @property
    def unread(self) -> int | None:
        """Its source, as long as that must be spared."""
        return None if self.has_grown else self.source


class _Found(NamedTuple):
    """A beginning of a sequence: its tokens, a slot to copy it from, and those that it could be left in."""

    num_tokens: int = 0
    source: int | None = None
    holders: Set[int] = frozenset()


class SlotManager:
    """KV cache of equal slots, each as long as the longest sequence: whoever is admitted has a whole one to its end.

    So growth never fails, nobody is preempted, and `max_utilization` admits as many as `guaranteed_no_evict`: a slot is
    a slot, however little of it a sequence will use.

    A new sequence gets the lowest free slot. What is kept there moves to a blank one or to the one whose content has
    not been of use for longest, unless little else is lost or it is itself the oldest, see `SlotMoves`.

    What a sequence has computed is known by content, granule by granule, while it runs and after it has gone. A new one
    that begins alike has that copied from where it is, unless that is its own slot, as is a parent's prompt, token by
    token. If it was a free slot that holds little else, that is blank once the new one has computed: a conversation
    that goes on is kept once.

    Copies are named when a sequence first grows; until then its source is given to nobody.

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
        self._reuse = reuse
        self._known = KnownPrefixes(num_slots, granule)
        self._copies: list[tuple[int, int, int]] = []
        self._moves = SlotMoves(self._known, self._copies)
        self._free = set(range(num_slots))
        self._num_readers = [0] * num_slots
        self._accounts: dict[Sequence, _Account] = {}
        self._users: dict[int, Sequence] = {}

    @property
    def num_free(self) -> int:
        """Slots that no sequence has or is still to copy from; some may hold a prefix that can be used again."""
        return len(self._free)

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
        if not self._free:
            return None
        found, slot = self._find(sequence), min(self._free)
        self._free.remove(slot)
        self._users[slot] = sequence
        self._accounts[sequence] = account = _Account(slot, found.num_tokens)
        in_place = slot in found.holders
        if found.source is not None and not in_place:
            account.source, account.replaces = found.source, found.source if found.source in self._free else None
            self._num_readers[found.source] += 1
            self._free.discard(found.source)
        self._clear(account, found.num_tokens if in_place else 0)
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
            if account is not None and parent.num_computed_tokens > account.num_found:
                num_shared = sequence.num_prompt_tokens - 1
                return _Found(num_shared, account.slot) if num_shared else _Found()
        return self._find_prefix(sequence)

    def _find_prefix(self, sequence: Sequence) -> _Found:
        if not (self._reuse and sequence.reuse_cache):
            return _Found()
        num_found, holders = self._known.longest(sequence, prompt_scores.max_cached_tokens(sequence))
        # A free one first, and of those the one with least besides.
        source = self._known.shortest(holders & self._free)
        return _Found(num_found, min(holders, default=None) if source is None else source, holders)

    def _clear(self, account: _Account, num_left: int) -> None:
        """Its slot is no longer free, and nothing but its first tokens will last there."""
        self._moves.send_on(account.slot, self._free)
        if not self._is_dispensable(account.slot, num_left):
            account.move = self._moves.begin(account.slot, self._free)
        self._known.forget(account.slot, num_left)

    def _is_dispensable(self, slot: int, num_left: int) -> bool:
        """Whether little or nothing is lost if only a slot's first tokens are left."""
        if self._known.is_elsewhere(slot) or (num_left and self._known.is_mostly(slot, num_left)):
            return True
        replacing = (pair for pair in self._accounts.items() if pair[1].replaces == slot)
        return any(self._is_replaced(slot, *pair) for pair in replacing)

    def _is_replaced(self, slot: int, sequence: Sequence, account: _Account) -> bool:
        """Whether a slot holds little but what was found of a sequence."""
        return self._known.holds(slot, sequence, account.num_found) and self._known.is_mostly(slot, account.num_found)

    def grow(self, sequence: Sequence, num_tokens: int) -> bool:
        """See `KVCache.grow`; only what does not fit into a slot fails."""
        account = self._accounts[sequence]
        if not account.has_grown:
            self._moves.name(account.move, account.slot)
            if account.source is not None:
                self._copies.append((account.source, account.slot, account.num_found))
            self._let_go(account)
        return num_tokens <= self.block_size

    def _let_go(self, account: _Account) -> None:
        """It reads its source no longer: what is copied by now is copied before anybody writes there."""
        source, account.has_grown = account.unread, True
        if source is not None:
            self._num_readers[source] -= 1
            self._put_back(source)

    def _put_back(self, slot: int) -> None:
        """It has been of use, and is free unless somebody has it or is to read it."""
        self._known.use(slot)
        if slot not in self._users and not self._num_readers[slot]:
            self._free.add(slot)

    def take_copies(self) -> tuple[tuple[int, int, int], ...]:
        """See `KVCache.take_copies`."""
        copies = tuple(self._copies)
        self._copies.clear()
        return copies

    def commit(self, sequence: Sequence) -> None:
        """See `KVCache.commit`; what was to be copied for it is there once it has computed."""
        account = self._accounts[sequence]
        if sequence.num_computed_tokens <= account.num_found:
            return
        if self._reuse and sequence.reuse_cache:
            self._known.learn(account.slot, sequence, sequence.num_computed_tokens)
        self._moves.end(account.move, is_there=True)
        source, account.replaces = account.replaces, None
        if source is not None and source in self._free and self._is_replaced(source, sequence, account):
            self._known.forget(source)

    def release(self, sequence: Sequence) -> None:
        """See `KVCache.release`; what the sequence has computed is kept for others."""
        self.commit(sequence)
        account = self._accounts.pop(sequence)
        self._moves.end(account.move, is_there=False)
        self._let_go(account)
        del self._users[account.slot]
        self._put_back(account.slot)
        sequence.block_table.clear()

    def check_integrity(self, running: Iterable[Sequence]) -> None:
        """Assert that every slot is free, read, or one sequence's, and that everything known of it is there."""
        running, accounts = set(running), list(self._accounts.values())
        assert running == set(self._accounts) == set(self._users.values())
        assert not self._copies
        readers = Counter(account.unread for account in accounts if account.unread is not None)
        assert [readers[slot] for slot in range(self.num_blocks)] == self._num_readers
        assert sorted([*(self._users.keys() | readers.keys()), *self._free]) == list(range(self.num_blocks))
        self._moves.check_integrity([account.move for account in accounts if account.move is not None], self._free)
        self._known.check_integrity()
        for sequence, account in self._accounts.items():
            self._check_account(sequence, account)

    def _check_account(self, sequence: Sequence, account: _Account) -> None:
        """Assert that what is known of its slot is the sequence's own, and that what it is to read is still there."""
        assert sequence.block_table == [account.slot]
        assert self._users[account.slot] is sequence
        assert account.num_found <= sequence.num_computed_tokens <= self.block_size
        self._known.check_user(account.slot, sequence)
        assert self._known.is_blank(account.slot) or (self._reuse and sequence.reuse_cache)
        if account.unread is not None:
            assert self._known.is_blank(account.slot)
            assert sequence.num_computed_tokens == account.num_found > 0
            reader, user = sequence.token_ids[: account.num_found], self._users.get(account.unread)
            assert user is None or user.token_ids[: account.num_found] == reader
            assert sequence.parent is not None or self._known.holds(account.unread, sequence, account.num_found)
