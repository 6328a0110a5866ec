"""The shared-memory table through which postprocessing tells the core which chunks of a stream have arrived.

An ensemble has no way back: the core never learns that a client is gone or slow, while postprocessing sees both. So it
writes down each chunk once its text has left, or that nobody wants it any more, and the core reads.

Owns the table's file, its shape and the encoding of an acknowledgement. Never decides what a missing one means.

Shape `[num_slots, NUM_COLUMNS]` int64. A row belongs to one stream of the core; a column to one postprocessing
instance, so every cell has one writer and needs no lock. A cell holds the largest acknowledgement written:
`generation << 32 | number of chunks delivered`, all 32 bits set when the client is gone; a new stream in an old row has
a larger generation.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import secrets
from pathlib import Path

import numpy as np
import numpy.typing as npt

NUM_COLUMNS = 16
#: In place of a number of chunks: the client is gone.
GONE = 0xFFFFFFFF
_FOLDER = Path("/dev/shm")  # noqa: S108 (shared memory between the processes of one server is the point)
_CELL = np.dtype(np.int64).itemsize


def _path(table_id: int) -> Path:
    return _FOLDER / f"trident-{table_id:016x}"


def encode(generation: int, num_chunks: int) -> int:
    """The acknowledgement of the first `num_chunks` chunks of a row's `generation`-th stream."""
    return generation << 32 | num_chunks


class AcknowledgementTable:
    """The core's end: creates the file, hands out rows, reads them, removes the file.

    Not thread-safe: one thread opens, reads and closes rows.
    """

    def __init__(self, num_slots: int) -> None:
        self.table_id = secrets.randbits(62) | 1
        descriptor = os.open(_path(self.table_id), os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            os.ftruncate(descriptor, num_slots * NUM_COLUMNS * _CELL)
            self._map = mmap.mmap(descriptor, 0)
        finally:
            os.close(descriptor)
        self._cells: npt.NDArray[np.int64] = np.frombuffer(self._map, np.int64).reshape(num_slots, NUM_COLUMNS)
        self._free = list(range(num_slots - 1, -1, -1))
        self._generations = [0] * num_slots

    def open(self) -> tuple[int, int]:
        """Take a row for a new stream: `(slot, generation)`."""
        slot = self._free.pop()
        self._generations[slot] += 1
        return slot, self._generations[slot]

    def release(self, slot: int) -> None:
        """Give a row back; late acknowledgements of its old stream no longer count."""
        self._free.append(slot)

    def newest(self) -> npt.NDArray[np.int64]:
        """The largest acknowledgement of every row, int64 `[num_slots]`."""
        newest: npt.NDArray[np.int64] = self._cells.max(axis=1)
        return newest

    @staticmethod
    def decode(acknowledgement: int, generation: int) -> int:
        """How many chunks of the `generation`-th stream of a row have been delivered, or GONE."""
        return acknowledgement & GONE if acknowledgement >> 32 == generation else 0

    def close(self) -> None:
        """Remove the file; whoever has it mapped keeps a harmless copy."""
        with contextlib.suppress(FileNotFoundError):
            _path(self.table_id).unlink()


class Acknowledger:
    """Postprocessing's end: opens tables by id as chunks name them, and writes its own column.

    A table that does not exist (the core is gone) or a row outside it is ignored: there is nobody to tell.
    """

    def __init__(self, instance: int) -> None:
        self._column = instance % NUM_COLUMNS
        self._tables: dict[int, npt.NDArray[np.int64]] = {}

    def acknowledge(self, table_id: int, slot: int, acknowledgement: int) -> None:
        """Write down one delivered chunk; `table_id` 0 means that nobody asks."""
        if table_id <= 0:
            return
        table = self._tables.get(table_id)
        if table is None:
            table = self._open(table_id)
            if table is None:
                return
            self._tables[table_id] = table
        if 0 <= slot < len(table) and acknowledgement > table[slot, self._column]:
            table[slot, self._column] = acknowledgement

    @staticmethod
    def _open(table_id: int) -> npt.NDArray[np.int64] | None:
        try:
            with _path(table_id).open("r+b") as file:
                cells = np.frombuffer(mmap.mmap(file.fileno(), 0), np.int64)
        except (OSError, ValueError):
            return None
        return cells.reshape(-1, NUM_COLUMNS) if cells.size % NUM_COLUMNS == 0 else None
