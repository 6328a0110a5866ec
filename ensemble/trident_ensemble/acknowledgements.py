"""The shared-memory table through which postprocessing tells the core which chunks of a stream have arrived.

An ensemble has no way back: the core never learns that a client is gone or slow, while postprocessing sees both. So it
writes down each chunk once its text has left, or that nobody wants it any more, and the core reads.

Owns the table's file, its shape and the encoding of an acknowledgement. Never decides what a missing one means.

Shape `[num_slots, NUM_COLUMNS]` int64. A row belongs to one stream of the core; a column to one postprocessing
instance, so every cell has one writer and needs no lock. A cell holds an acknowledgement:
`generation << 32 | number of chunks delivered`, all 32 bits set when the client is gone; a new stream in an old row has
a larger generation.
"""

from __future__ import annotations

import contextlib
import fcntl
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
        _sweep()
        self.table_id = secrets.randbits(62) | 1
        unlocked = _path(self.table_id).with_suffix(".new")
        self._file = os.fdopen(os.open(unlocked, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600), "r+b")
        # Locked as long as this process lives, so that another can tell a table in use from one left behind.
        fcntl.flock(self._file, fcntl.LOCK_EX)
        self._file.truncate(num_slots * NUM_COLUMNS * _CELL)
        self._cells: npt.NDArray[np.int64] = np.frombuffer(mmap.mmap(self._file.fileno(), 0), np.int64).reshape(
            num_slots, NUM_COLUMNS
        )
        unlocked.rename(_path(self.table_id))
        self._free = list(range(num_slots - 1, -1, -1))
        self._generations: npt.NDArray[np.int64] = np.zeros(num_slots, np.int64)

    def open(self) -> tuple[int, int]:
        """Take a row for a new stream: `(slot, generation)`."""
        slot = self._free.pop()
        generation = secrets.randbits(30) + 1
        self._generations[slot] = generation
        return slot, generation

    def release(self, slot: int) -> None:
        """Give a row back; late acknowledgements of its old stream no longer count."""
        self._generations[slot] = 0
        self._free.append(slot)

    def num_acknowledged(self, slots: list[int]) -> list[int]:
        """How many chunks of each row's stream have been delivered, or GONE."""
        cells = self._cells[slots]
        own = cells >> 32 == self._generations[slots, None]
        counts: list[int] = np.where(own, cells & GONE, 0).max(axis=1).tolist()
        return counts

    def close(self) -> None:
        """Remove the file; whoever has it mapped keeps a harmless copy."""
        _path(self.table_id).unlink(missing_ok=True)
        self._file.close()


def _sweep() -> None:
    """Remove the tables of processes that were killed."""
    for path in _FOLDER.glob("trident-" + "[0-9a-f]" * 16):
        with contextlib.suppress(OSError), path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink(missing_ok=True)


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
        if 0 <= slot < len(table):
            table[slot, self._column] = acknowledgement

    @staticmethod
    def _open(table_id: int) -> npt.NDArray[np.int64] | None:
        try:
            with _path(table_id).open("r+b") as file:
                cells = np.frombuffer(mmap.mmap(file.fileno(), 0), np.int64)
        except (OSError, ValueError):
            return None
        return cells.reshape(-1, NUM_COLUMNS) if cells.size % NUM_COLUMNS == 0 else None
