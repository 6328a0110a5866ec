"""The shared-memory table through which postprocessing tells the core which chunks of a stream have arrived.

An ensemble has no way back: the core never learns that a client is gone or slow, while postprocessing sees both. So
postprocessing writes down each chunk once its text has left, or that the client is gone, and the core reads.

Owns the table's file, its shape and the encoding of an acknowledgement. Never decides what a missing one means.

The table is int64 `[1 + NUM_INSTANCES, num_columns]`. A column belongs to one stream of the core. Its value in row 0 is
the stream's secret, which the core draws and writes, and which only the stream's own chunks carry; it is 0 while the
column is free. Each further row has one postprocessing instance as its only writer, so that no cell needs a lock. An
instance writes only where the chunk at hand names the column's secret: a client that calls postprocessing with a chunk
of its own making reaches only streams whose chunks it was sent. A cell holds `low 31 bits of the secret << 32 | number
of chunks delivered`, so that what is written while a column changes its stream counts for neither; GONE in place of the
number says that the client is gone.

The file lies in a folder of its own, `/dev/shm/trident-<table id>`: Triton lets its clients register shared memory by
name, and such a name cannot lead into a folder. A table's id alone is therefore no secret.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import re
import secrets
import shutil
from pathlib import Path

import numpy as np
import numpy.typing as npt

from trident_ensemble.contract.errors import PlanError

NUM_INSTANCES = 16
#: In place of a number of chunks: the client is gone.
GONE = 0xFFFFFFFF
_SECRET_BITS = 62
_TAG = 0x7FFFFFFF
_FOLDER = Path("/dev/shm")  # noqa: S108 (shared memory between the processes of one server is the point)
_FILE = "acknowledgements"
#: Folders of tables, and what earlier versions left in their place.
_TABLE = re.compile(r"trident-[0-9a-f]{16}(\.new)?")
_CELL = np.dtype(np.int64).itemsize

_Cells = npt.NDArray[np.int64]


def table_folder(table_id: int) -> Path:
    """Return the folder of a table's file, which exists as long as the table does."""
    return _FOLDER / f"trident-{table_id:016x}"


def _cell(secret: int, num_chunks: int) -> int:
    return (secret & _TAG) << 32 | num_chunks


class AcknowledgementTable:
    """The core's end of the table: creates the file, hands out columns, reads them, and removes the file.

    Not thread-safe: one thread opens, reads and releases columns.

    Args:
        num_columns: streams that may be open at a time.

    Raises:
        PlanError: there is no room for the file.
    """

    def __init__(self, num_columns: int) -> None:
        _sweep()
        self.table_id, self._lock = 0, -1
        try:
            self.table_id, self._lock = _make_folder()
            self._rows = _make_file(self.table_id, num_columns)
        except OSError as error:
            self.close()
            size = num_columns * (1 + NUM_INSTANCES) * _CELL
            raise PlanError(
                f"{_FOLDER} has no room for the {size} bytes of the acknowledgement table ({error.strerror}); make it "
                "larger (a container's --shm-size), or max_queue_size smaller"
            ) from None
        self._free = list(range(num_columns - 1, -1, -1))

    def open(self) -> tuple[int, int]:
        """Take a column for a new stream; return it and the stream's secret."""
        column = self._free.pop()
        secret = secrets.randbits(_SECRET_BITS) | 1
        self._rows[0, column] = secret
        return column, secret

    def release(self, column: int) -> None:
        """Give a column back; late acknowledgements of its old stream no longer count."""
        self._rows[0, column] = 0
        self._free.append(column)

    def num_acknowledged(self, columns: list[int]) -> list[int]:
        """Return how many chunks of each column's stream have been delivered, or GONE."""
        values = self._rows.take(columns, axis=1)
        tags, cells = values[0] & _TAG, values[1:]
        counts: list[int] = np.where(cells >> 32 == tags, cells & GONE, 0).max(axis=0).tolist()
        return counts

    def close(self) -> None:
        """Remove the file; a process that has it mapped keeps a harmless copy."""
        shutil.rmtree(table_folder(self.table_id), ignore_errors=True)
        with contextlib.suppress(OSError):
            os.close(self._lock)
        self._lock = -1


def _make_folder() -> tuple[int, int]:
    """Create a table's folder; return the table's id and the descriptor through which the folder is locked.

    It is locked as long as this process lives, so that others can tell a table in use from one left behind. A folder
    that was swept before it was locked is given up.
    """
    while True:
        table_id = secrets.randbits(_SECRET_BITS) | 1
        folder = table_folder(table_id)
        folder.mkdir(0o700)
        with contextlib.suppress(FileNotFoundError):
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            fcntl.flock(lock, fcntl.LOCK_EX)
            if folder.exists():
                return table_id, lock
            os.close(lock)


def _make_file(table_id: int, num_columns: int) -> _Cells:
    size = num_columns * (1 + NUM_INSTANCES) * _CELL
    file = os.open(table_folder(table_id) / _FILE, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        # A file with holes would be a bus error at the first write to one that finds the memory full.
        os.posix_fallocate(file, 0, size)
        return np.frombuffer(mmap.mmap(file, size), np.int64).reshape(1 + NUM_INSTANCES, num_columns)
    finally:
        os.close(file)


def _sweep() -> None:
    """Remove the tables of processes that were killed, finished or not."""
    for path in _FOLDER.iterdir():
        if not _TABLE.fullmatch(path.name):
            continue
        with contextlib.suppress(OSError):
            lock = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink(missing_ok=True)
            finally:
                os.close(lock)


class Acknowledger:
    """Postprocessing's end of the table: opens tables by id as chunks name them, and writes its own row.

    A table that does not exist (the core is gone), a column outside it and a secret that is not the column's are
    ignored.

    Args:
        instance: number of the postprocessing instance.
    """

    def __init__(self, instance: int) -> None:
        self._row = 1 + instance % NUM_INSTANCES
        self._tables: dict[int, _Cells] = {}

    def acknowledge(self, table_id: int, column: int, secret: int, num_chunks: int) -> None:
        """Write down that the first chunks of a stream have been delivered, or that its client is GONE.

        Args:
            table_id: the core's table; 0 if no acknowledgement is wanted.
            column: the stream's.
            secret: the stream's.
            num_chunks: how many chunks, or GONE.
        """
        if table_id <= 0 or secret <= 0 or not 0 <= num_chunks <= GONE:
            return
        rows = self._tables.get(table_id)
        if rows is None:
            rows = self._open(table_id)
        if rows is not None and 0 <= column < rows.shape[1] and int(rows[0, column]) == secret:
            rows[self._row, column] = _cell(secret, num_chunks)

    def _open(self, table_id: int) -> _Cells | None:
        """Map a table, and unmap those whose core is gone."""
        try:
            file = os.open(table_folder(table_id) / _FILE, os.O_RDWR | os.O_NOFOLLOW)
            try:
                values = np.frombuffer(mmap.mmap(file, 0), np.int64)
            finally:
                os.close(file)
        except (OSError, ValueError):
            return None
        if values.size % (1 + NUM_INSTANCES):
            return None
        kept = {other: rows for other, rows in self._tables.items() if table_folder(other).exists()}
        self._tables = {**kept, table_id: values.reshape(1 + NUM_INSTANCES, -1)}
        return self._tables[table_id]
