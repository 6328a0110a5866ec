"""The weights of a program on the device.

Owns their memory, which is one allocation, and their way there from the file: in pieces through two pinned buffers, so
that one is read from the disk while the other is uploaded, and the host never holds more than both. Never knows what a
weight is for.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from io import BufferedReader
from pathlib import Path

from trident_backend.engine.gpu.device import Bytes, Device
from trident_backend.engine.gpu.freeing import freed_on_failure
from trident_backend.engine.gpu.program import StoredWeight
from trident_ensemble.contract.errors import ArtifactError

#: Bytes that are read at once, and the seconds after which the log says again how far the upload is.
_PIECE_BYTES = 32 * 2**20
_LOG_INTERVAL_S = 10.0
_GIB = 2**30


class WeightMemory:
    """Memory for the weights of a program, which hold them after `upload`.

    Args:
        device: whose memory.
        path: of the weights' file.
        weights: all of them.

    Raises:
        ArtifactError: the file is missing, or shorter than the weights.
        EngineError: there is no memory.
    """

    def __init__(self, device: Device, path: Path, weights: Sequence[StoredWeight]) -> None:
        self._device = device
        self._path = path
        self._num_bytes = num_bytes_of(path, weights)
        self._base = device.allocate(max(1, self._num_bytes))
        self.addresses = {weight.name: self._base + weight.offset for weight in weights}

    def upload(self) -> None:
        """Read the file and upload it; the log says how far it is. The caller may be interrupted at any piece.

        Raises:
            ArtifactError: the file cannot be read, or is shorter than it was.
            EngineError: the device failed.
        """
        size = max(1, min(_PIECE_BYTES, self._num_bytes))
        memory = self._device.pinned(2 * size)
        with freed_on_failure() as stack:
            stack.callback(self._device.free_pinned, memory)
            stack.callback(self._device.synchronize)  # the device may still be reading the memory
            try:
                with self._path.open("rb") as file:
                    self._upload(file, (memory[:size], memory[size:]))
            except OSError as error:
                raise ArtifactError(f"{self._path.name}: cannot be read: {error}") from None
            stack.close()

    def close(self) -> None:
        """Free the memory."""
        self._device.free(self._base)

    def _upload(self, file: BufferedReader, halves: tuple[Bytes, Bytes]) -> None:
        log, began = logging.getLogger(__name__), time.monotonic()
        said = began
        num_done = 0
        while num_done < self._num_bytes:
            piece = halves[0][: self._num_bytes - num_done]
            if file.readinto(piece.data) != piece.size:
                raise ArtifactError(f"{self._path.name}: the file ends before its {self._num_bytes} bytes; build again")
            # Of the other half's upload, which ran while this half was read.
            self._device.synchronize()
            self._device.upload(self._base + num_done, piece)
            num_done += piece.size
            halves = halves[1], halves[0]
            if time.monotonic() - said > _LOG_INTERVAL_S:
                said = time.monotonic()
                log.info("uploaded %.1f of %.1f GiB of weights", num_done / _GIB, self._num_bytes / _GIB)
        self._device.synchronize()
        seconds = time.monotonic() - began
        log.info("uploaded %.1f GiB of weights in %.1f s", self._num_bytes / _GIB, seconds)


def num_bytes_of(path: Path, weights: Sequence[StoredWeight]) -> int:
    """Return the bytes that the weights take in their file and on the device.

    Raises:
        ArtifactError: the file is missing, or shorter than the weights.
    """
    num_bytes = max((weight.offset + weight.num_bytes for weight in weights), default=0)
    try:
        size = path.stat().st_size
    except OSError as error:
        raise ArtifactError(f"{path.name}: cannot be read: {error}; build again") from None
    if size < num_bytes:
        raise ArtifactError(f"{path.name}: the file has {size} bytes, the program's weights {num_bytes}; build again")
    return num_bytes
