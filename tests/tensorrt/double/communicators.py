"""NCCL's double: communicators among processes of this machine, over sockets.

Rank 0 listens where the unique id says; of each collective all others send it their arrays, and it sends the result
back. As with NCCL, whoever waits for a rank that is gone waits until the communicator is aborted, and then gets
something, but no result and no error; and who uses a communicator after that uses memory that was freed.
"""

from __future__ import annotations

import ctypes
import io
import socket
import struct
import tempfile
import threading
import time
import weakref
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from tests.tensorrt.collectives import combined
from tests.tensorrt.double.gpu import Fault
from tests.tensorrt.number_formats import Array

_ID_BYTES = 128
_LENGTH = struct.Struct("<Q")


class UniqueId:
    """See `nccl.core.UniqueId`: where rank 0 listens."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __bytes__(self) -> bytes:
        return self.path.encode().ljust(_ID_BYTES, b"\0")

    @staticmethod
    def from_bytes(b: bytes) -> UniqueId:
        assert len(b) == _ID_BYTES
        return UniqueId(b.rstrip(b"\0").decode())


def get_unique_id() -> UniqueId:
    return UniqueId(str(Path(tempfile.mkdtemp(prefix="nccl-double-")) / "socket"))


class Communicator:
    """See `nccl.core.Communicator`."""

    _all: ClassVar[weakref.WeakValueDictionary[int, Communicator]] = weakref.WeakValueDictionary()

    def __init__(self, nranks: int, rank: int, peers: list[socket.socket]) -> None:
        self.nranks = nranks
        self.rank = rank
        self.ptr = id(self)
        self._peers = peers
        self._aborted = threading.Event()
        self._all[self.ptr] = self

    @classmethod
    def init(cls, nranks: int, rank: int, unique_id: UniqueId) -> Communicator:
        return cls(nranks, rank, _listen(nranks, unique_id.path) if rank == 0 else [_connect(rank, unique_id.path)])

    @classmethod
    def of(cls, capsule: Any) -> Communicator:
        """The communicator in what `IExecutionContext.set_communicator` was given."""
        pointer = ctypes.pythonapi.PyCapsule_GetPointer
        pointer.restype, pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
        return cls._all[pointer(capsule, b"ncclComm_t")]

    def abort(self) -> None:
        self._aborted.set()
        for peer in self._peers:
            with suppress(OSError):
                peer.shutdown(socket.SHUT_RDWR)
            peer.close()

    def destroy(self) -> None:
        assert not self._aborted.is_set(), "an aborted communicator is gone"
        self.collective("ALL_REDUCE", "SUM", np.zeros(1, np.float32))
        assert not self._aborted.is_set()
        self.abort()

    def collective(self, operation: str, reduction: str, array: Array) -> Array:
        """What this rank gets; junk if it is aborted meanwhile."""
        if self._aborted.is_set():
            raise Fault(700, "a collective of a communicator that was aborted")
        try:
            if self.rank:
                _send(self._peers[0], operation, array)
                return _receive(self._peers[0])[0]
            arrays = [array]
            for peer in self._peers:
                theirs, part = _receive(peer)
                assert str(theirs) == operation, "the ranks do not run the same network"
                arrays.append(part)
            result = combined(operation, reduction, arrays)
            for peer in self._peers:
                _send(peer, result)
        except OSError:
            self._aborted.wait()
            return np.concatenate([array] * self.nranks) if operation == "ALL_GATHER" else array
        return result


def _listen(nranks: int, path: str) -> list[socket.socket]:
    peers: dict[int, socket.socket] = {}
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen()
        while len(peers) < nranks - 1:
            peer, _ = server.accept()
            peers[int(_receive(peer)[0])] = peer
    Path(path).unlink()
    Path(path).parent.rmdir()
    return [peers[rank] for rank in sorted(peers)]


def _connect(rank: int, path: str) -> socket.socket:
    peer = socket.socket(socket.AF_UNIX)
    for _ in range(600):
        try:
            peer.connect(path)
            break
        except OSError:
            time.sleep(0.05)
    _send(peer, rank)
    return peer


def _send(peer: socket.socket, *value: Any) -> None:
    file = io.BytesIO()
    np.savez(file, *value)
    blob = file.getvalue()
    peer.sendall(_LENGTH.pack(len(blob)) + blob)


def _receive(peer: socket.socket) -> list[Array]:
    (length,) = _LENGTH.unpack(_exactly(peer, _LENGTH.size))
    with np.load(io.BytesIO(_exactly(peer, length))) as arrays:
        return list(arrays.values())


def _exactly(peer: socket.socket, length: int) -> bytes:
    parts = bytearray()
    while len(parts) < length:
        piece = peer.recv(length - len(parts))
        if not piece:
            raise ConnectionError
        parts += piece
    return bytes(parts)
