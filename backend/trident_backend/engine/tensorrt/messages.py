"""The messages between the leader of several ranks and its ranks, and their layout on the socket.

Owns the framing and the bytes of a step. A message is a header (a mark, its kind, its length), then its payload;
numbers are little-endian, texts UTF-8, nothing is pickled. Never starts a process and never runs a step.
"""

from __future__ import annotations

import contextlib
import socket
import struct
from dataclasses import fields
from enum import IntEnum
from typing import NamedTuple

import numpy as np

from trident_backend.engine.protocol import StepBatch
from trident_ensemble.contract.errors import EngineError

_MARK = b"TRDR"
_HEADER = struct.Struct("<4sBI")
#: A step has a few integers a token; no step comes near this.
_MAX_LENGTH = 1 << 28
_FIELDS = tuple(field.name for field in fields(StepBatch))
_COUNTS = struct.Struct(f"<{len(_FIELDS)}I")


class Kind(IntEnum):
    """The kind of a message; the first four go from the leader to a rank, the others back."""

    #: What to load, as JSON.
    START = 1
    #: The unique id of the communicator to join.
    JOIN = 2
    #: A step to compute.
    STEP = 3
    #: No more steps come.
    STOP = 4
    #: Ready to join.
    LOADED = 5
    #: Ready for steps.
    READY = 6
    #: Why the rank gives up, as text.
    FAILED = 7


_KINDS = frozenset(Kind)


class Message(NamedTuple):
    """One message between the leader and a rank."""

    kind: Kind
    payload: bytes = b""

    @property
    def text(self) -> str:
        """The payload as text."""
        return self.payload.decode(errors="replace")


class Channel:
    """One end of the socket between the leader and a rank. One thread may send while another receives.

    Args:
        stream: connected; the channel owns it.
    """

    def __init__(self, stream: socket.socket) -> None:
        self._stream = stream

    def send(self, message: Message) -> None:
        """Send a message; wait while the other end is behind.

        Raises:
            EngineError: the other end is gone.
        """
        try:
            self._stream.sendall(_HEADER.pack(_MARK, message.kind, len(message.payload)) + message.payload)
        except OSError as error:
            raise EngineError(f"a message could not be sent: {error}") from None

    def receive(self) -> Message | None:
        """Wait for a message and return it; None at the end of the stream.

        Raises:
            EngineError: what came is no message.
        """
        header = self._read(_HEADER.size)
        if header is None:
            return None
        mark, kind, length = _HEADER.unpack(header)
        if mark != _MARK or kind not in _KINDS or length > _MAX_LENGTH:
            raise EngineError(f"what came is no message of this version: it begins with {header!r}")
        payload = self._read(length)
        return None if payload is None else Message(Kind(kind), payload)

    def close(self) -> None:
        """Close the stream both ways, also for a thread that waits for it."""
        with contextlib.suppress(OSError):
            self._stream.shutdown(socket.SHUT_RDWR)
        self._stream.close()

    def _read(self, length: int) -> bytes | None:
        """Return exactly so many bytes; None where the stream ends before."""
        parts = bytearray()
        while len(parts) < length:
            try:
                piece = self._stream.recv(min(length - len(parts), 1 << 20))
            except OSError:
                return None
            if not piece:
                return None
            parts += piece
        return bytes(parts)


def pack_batch(batch: StepBatch) -> Message:
    """Pack a step: the number of integers in each field, then all of them as int32."""
    arrays = [np.ravel(np.asarray(getattr(batch, name), "<i4")) for name in _FIELDS]
    counts = _COUNTS.pack(*(array.size for array in arrays))
    return Message(Kind.STEP, counts + np.concatenate(arrays).tobytes())


def unpack_batch(payload: bytes) -> StepBatch:
    """Return the step that `pack_batch` packed.

    Raises:
        EngineError: the payload is none.
    """
    if len(payload) < _COUNTS.size:
        raise EngineError(f"a step of {len(payload)} bytes came: not even its counts")
    counts = _COUNTS.unpack_from(payload)
    if len(payload) != _COUNTS.size + 4 * sum(counts):
        raise EngineError(f"a step of {len(payload)} bytes came, which do not hold {sum(counts)} integers")
    values = np.frombuffer(payload, "<i4", offset=_COUNTS.size).astype(np.int32)
    parts = dict(zip(_FIELDS, np.split(values, np.cumsum(counts)[:-1]), strict=True))
    longest, copies = parts.pop("max_context_len"), parts.pop("block_copies")
    if longest.size != 1 or copies.size % 3:
        raise EngineError(f"a step came with {longest.size} longest contexts and {copies.size} integers of copies")
    return StepBatch(**parts, max_context_len=int(longest[0]), block_copies=copies.reshape(-1, 3))
