"""Moves the cached content of a slot that is given to a sequence to another slot.

Owns the moves under way: what moves, which spare slot is reserved for it, and the copies. Never knows to which sequence
a slot belongs.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass

from trident_backend.kv.cached_prefixes import CachedPrefixes, Content
from trident_backend.sequences.steps import BlockCopy


@dataclass
class Move:
    """The move of a cached prefix out of a slot that is given to a sequence.

    Args:
        content: what was cached in the slot.
        spare: the free slot that it is copied to; None if it is lost, or has arrived.
        has_copy: whether the copy has been asked for.
    """

    content: Content
    spare: int | None = None
    has_copy: bool = False


class SlotMoves:
    """Moves of evictable content, from the admission of a sequence until it has first computed.

    A spare slot is free: if it is given to a sequence in its turn, the move goes on to another slot, if there is one.
    Nothing is cached there until the move has ended, as the copy may fail.

    Args:
        prefixes: what is cached in slots.
        copies: to make before the next step computes; is appended to.
    """

    def __init__(self, prefixes: CachedPrefixes, copies: list[BlockCopy]) -> None:
        self._prefixes = prefixes
        self._copies = copies
        self._moves: dict[int, Move] = {}

    def begin(self, slot: int, free: Set[int]) -> Move | None:
        """Reserve a spare slot for what is cached in another.

        Args:
            slot: is to be given away.
            free: the slots that can be spared: the empty ones first, the highest before the others, then the least
                recently used.

        Returns:
            None, and what is cached in the slot is lost, if there is no spare slot, or it is itself the oldest.
        """
        move = Move(self._prefixes.content(slot))
        self._reserve(move, free)
        return move if move.spare is not None else None

    def _reserve(self, move: Move, free: Set[int]) -> None:
        free = free - self._moves.keys()
        empty = [slot for slot in free if self._prefixes.is_empty(slot)]
        move.spare = max(empty) if empty else self._prefixes.oldest(free)
        if move.spare is None:
            return
        if not empty and self._prefixes.content(move.spare).last_use > move.content.last_use:
            move.spare = None
            return
        self._prefixes.truncate(move.spare)
        self._moves[move.spare] = move

    def send_on(self, slot: int, free: Set[int]) -> None:
        """Find another spare slot for the move, if any, to a slot that is given away; without one it is lost."""
        move = self._moves.pop(slot, None)
        if move is None:
            return
        self._reserve(move, free)
        if move.has_copy:
            self._copy(move, slot)

    def copy(self, move: Move | None, slot: int) -> None:
        """Ask for the copy of what moves out of a slot, which is about to be written; None where nothing moves."""
        if move is not None:
            self._copy(move, slot)
            move.has_copy = True

    def _copy(self, move: Move, slot: int) -> None:
        if move.spare is not None:
            num_tokens = len(move.content.digests) * self._prefixes.hash_block_size
            self._copies.append(BlockCopy(slot, move.spare, num_tokens))

    def end(self, move: Move | None, *, has_arrived: bool) -> None:
        """End a move: its spare slot holds what has moved, or is empty. To end it twice changes nothing."""
        if move is not None and move.spare is not None:
            del self._moves[move.spare]
            if has_arrived:
                self._prefixes.put(move.spare, move.content)
            move.spare = None

    def check_integrity(self, under_way: list[Move], free: Set[int]) -> None:
        """Assert that every spare slot is free and empty, and reserved for one of the moves under way."""
        assert self._moves == {move.spare: move for move in under_way if move.spare is not None}
        assert self._moves.keys() <= free
        assert all(map(self._prefixes.is_empty, self._moves))
