"""Where the content of a slot goes that is given to a sequence.

Owns the moves under way: what moves, which spare slot is reserved for it, and the copies. Never knows whose a slot is.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass

from trident_backend.kv.known_prefixes import Content, KnownPrefixes


@dataclass
class Move:
    """What was in a slot; the free slot that it is to go to; whether the copy has been named."""

    content: Content
    spare: int | None = None
    is_named: bool = False


class SlotMoves:
    """Moves of kept content, from the admission of a sequence until it has first computed.

    A spare slot is free: who is given it sends what was to come there on to another, if there is one. Until a move has
    ended its content is not known: the copy may fail.

    Args:
        known: what is known of slots.
        copies: those that are named, see `StepBatch.block_copies`; is appended to.
    """

    def __init__(self, known: KnownPrefixes, copies: list[tuple[int, int, int]]) -> None:
        self._known = known
        self._copies = copies
        self._moves: dict[int, Move] = {}

    def begin(self, slot: int, free: Set[int]) -> Move | None:
        """Reserve a spare slot for what is in another.

        Args:
            slot: is to be given away.
            free: the slots that can be spared; the blank ones of them first, the highest before the others, then the
                one that has not been of use for longest.

        Returns:
            None, and what is in the slot is lost, if there is none, or it is itself the oldest.
        """
        move = Move(self._known.content(slot))
        self._reserve(move, free)
        return move if move.spare is not None else None

    def _reserve(self, move: Move, free: Set[int]) -> None:
        free = free - self._moves.keys()
        blank = [slot for slot in free if self._known.is_blank(slot)]
        move.spare = max(blank) if blank else self._known.oldest(free)
        if move.spare is None:
            return
        if not blank and self._known.content(move.spare).last_use > move.content.last_use:
            move.spare = None
            return
        self._known.forget(move.spare)
        self._moves[move.spare] = move

    def send_on(self, slot: int, free: Set[int]) -> None:
        """What was to come to a slot that is given away goes to another, or is lost."""
        move = self._moves.pop(slot, None)
        if move is None:
            return
        self._reserve(move, free)
        if move.is_named:
            self._name(move, slot)

    def name(self, move: Move | None, slot: int) -> None:
        """A slot is about to be written: what was there is copied before, if it moves."""
        if move is not None:
            self._name(move, slot)
            move.is_named = True

    def _name(self, move: Move, slot: int) -> None:
        if move.spare is not None:
            self._copies.append((slot, move.spare, len(move.content.digests) * self._known.granule))

    def end(self, move: Move | None, *, is_there: bool) -> None:
        """The spare slot is like any other that is free, with what has moved, or blank; twice changes nothing."""
        if move is not None and move.spare is not None:
            del self._moves[move.spare]
            if is_there:
                self._known.put(move.spare, move.content)
            move.spare = None

    def check_integrity(self, under_way: list[Move], free: Set[int]) -> None:
        """Assert that every spare slot is free and blank, and reserved for one of the moves under way."""
        assert self._moves == {move.spare: move for move in under_way if move.spare is not None}
        assert self._moves.keys() <= free
        assert all(map(self._known.is_blank, self._moves))
