"""Which row of a table on the device holds whose penalties, and what must be written there before they are used.

Owns the rows' assignment and the knowledge of what was written. Never touches the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple
from weakref import ReferenceType, WeakKeyDictionary, ref

import numpy as np

from trident_backend.engine.protocol import FloatArray, Indices, Int32Array, PenaltyHistory, RowPenalties, TokenIds


class TableChanges(NamedTuple):
    """What a step needs of the table.

    Args:
        places: `[n]`, the table's rows that hold the penalties asked for.
        cleared: rows that are to be emptied first.
        rows: `[m]`, ascending, of the entries to write then.
        ids: `[m]`, their tokens, different ones of each row.
        offsets: `[m]`, their values.
    """

    places: Int32Array
    cleared: list[int]
    rows: Indices
    ids: TokenIds
    offsets: FloatArray


@dataclass
class _Held:
    """A row, and how many of the output's tokens are in it."""

    row: int
    num_output_tokens: int


class PenaltyRows:
    """A sequence's penalties stay in a row for as long as no other needs it, so that a step writes what is new alone.

    Of more sequences than there are rows, those whose penalties were used last keep theirs; the others' are written
    anew when they are needed.

    Args:
        num_rows: of the table.
    """

    def __init__(self, num_rows: int) -> None:
        self._turn = 0
        self._last_used = [0] * num_rows
        self._owners: list[ReferenceType[PenaltyHistory] | None] = [None] * num_rows
        self._held: WeakKeyDictionary[PenaltyHistory, _Held] = WeakKeyDictionary()

    def assign(self, penalties: Sequence[RowPenalties]) -> TableChanges:
        """Find or make room for penalties that are used together.

        Args:
            penalties: as many as there are rows, at most; no two of one history.
        """
        self._turn += 1
        found = [None if each.history is None else self._held.get(each.history) for each in penalties]
        for held in found:
            if held is not None:
                self._last_used[held.row] = self._turn
        places: list[int] = []
        cleared: list[int] = []
        entries: list[tuple[int, TokenIds, FloatArray]] = []
        for each, held in zip(penalties, found, strict=True):
            if held is None:
                row = self._take(each.history)
                cleared.append(row)
                entries.append((row, *_all_entries(each)))
            else:
                row = held.row
                if each.history is not None:
                    new = each.history.since(held.num_output_tokens)
                    entries.append((row, np.array(list(new), np.int64), np.array(list(new.values()), np.float32)))
                    held.num_output_tokens = each.history.num_output_tokens
            places.append(row)
        entries.sort(key=lambda entry: entry[0])
        rows = np.repeat(np.array([row for row, *_ in entries], np.intp), [len(ids) for _, ids, _ in entries])
        ids, offsets = (np.concatenate(parts) for parts in list(zip(*entries, strict=True))[1:])
        return TableChanges(np.array(places, np.int32), cleared, rows, ids, offsets)

    def forget(self) -> None:
        """Take nothing for granted that was written, as it may not have been."""
        self._held.clear()

    def _take(self, history: PenaltyHistory | None) -> int:
        """The row that has not been used for longest; penalties without a history are not found there again."""
        row = min(range(len(self._last_used)), key=self._last_used.__getitem__)
        assert self._last_used[row] < self._turn, "more penalties are used together than there are rows"
        self._last_used[row] = self._turn
        owner = self._owners[row]
        before = None if owner is None else owner()
        if before is not None:
            self._held.pop(before, None)
        self._owners[row] = None if history is None else ref(history)
        if history is not None:
            self._held[history] = _Held(row, history.num_output_tokens)
        return row


def _all_entries(penalties: RowPenalties) -> tuple[TokenIds, FloatArray]:
    """Ids and offsets of all tokens; those that are only seen have nothing taken off."""
    _, seen_ids, counted_ids, offsets, _ = penalties
    if not (len(seen_ids) and len(counted_ids)):
        return penalties.ids, np.zeros(len(seen_ids), np.float32) if len(seen_ids) else offsets
    only_seen = seen_ids[~np.isin(seen_ids, counted_ids)]
    return np.concatenate([only_seen, counted_ids]), np.concatenate([np.zeros(len(only_seen), np.float32), offsets])
