"""The rows of a table on the device that hold sequences' penalties, and what must be written before they are used.

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
    """The changes of the table that a step needs.

    Args:
        table_rows: `[n]`, the table's rows that hold the penalties asked for.
        cleared: rows that are to be emptied first.
        rows: `[m]`, ascending, of the entries to write then.
        ids: `[m]`, their tokens; no row has one twice.
        offsets: `[m]`, their values.
    """

    table_rows: Int32Array
    cleared: list[int]
    rows: Indices
    ids: TokenIds
    offsets: FloatArray


@dataclass
class _Held:
    """A row, and the number of output tokens that are in it."""

    row: int
    num_output_tokens: int


class PenaltyRows:
    """Assigns rows to sequences, which keep them until others need them, so that a step writes only what is new.

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
        """Return the rows of penalties that are used together, and what must be written there first.

        Args:
            penalties: as many as there are rows, at most; no two of one history.
        """
        self._turn += 1
        found = [None if each.history is None else self._held.get(each.history) for each in penalties]
        for held in found:
            if held is not None:
                self._last_used[held.row] = self._turn
        table_rows: list[int] = []
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
            table_rows.append(row)
        entries.sort(key=lambda entry: entry[0])
        rows = np.repeat(np.array([row for row, *_ in entries], np.intp), [len(ids) for _, ids, _ in entries])
        ids, offsets = (np.concatenate(parts) for parts in list(zip(*entries, strict=True))[1:])
        return TableChanges(np.array(table_rows, np.int32), cleared, rows, ids, offsets)

    def forget(self) -> None:
        """Forget all rows: what was to be written may not have been."""
        self._held.clear()

    def _take(self, history: PenaltyHistory | None) -> int:
        """Take the least recently used row; penalties without a history are not found there again."""
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
    """Return ids and offsets of all tokens; the offset of those that are only seen is 0."""
    _, seen_ids, counted_ids, offsets, _ = penalties
    if not (len(seen_ids) and len(counted_ids)):
        return penalties.ids, np.zeros(len(seen_ids), np.float32) if len(seen_ids) else offsets
    only_seen = seen_ids[~np.isin(seen_ids, counted_ids)]
    return np.concatenate([only_seen, counted_ids]), np.concatenate([np.zeros(len(only_seen), np.float32), offsets])
