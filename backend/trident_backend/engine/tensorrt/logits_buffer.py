"""The logits of a step on the device, rows after one another in the order of the calls.

Owns their memory and where a call may write. Never reads a logit.
"""

from __future__ import annotations

import math

from trident_backend.engine.gpu.device import Device
from trident_backend.engine.gpu.names import ALIGNMENT


class LogitsBuffer:
    """Rows of float32.

    Args:
        device: whose memory.
        max_rows: of a call and of a step, at most.
        vocab_size: width of a row.
    """

    def __init__(self, device: Device, max_rows: int, vocab_size: int) -> None:
        self._device = device
        self._row_bytes = vocab_size * 4
        #: A call's rows begin at a multiple of so many, so that they are aligned.
        self._step = alignment_rows(vocab_size)
        self.address = device.allocate(num_bytes_of(max_rows, vocab_size))

    def address_for(self, first_row: int) -> int:
        """Return where a call writes whose rows belong at `first_row`: there, or a little behind, until `settle`."""
        return self.address + self._aligned(first_row) * self._row_bytes

    def settle(self, first_row: int, num_rows: int) -> None:
        """Enqueue the move of a call's rows to `first_row`, if they were written elsewhere."""
        source, shift = self._aligned(first_row), self._aligned(first_row) - first_row
        if not shift:
            return
        for done in range(0, num_rows, shift):  # in pieces that do not overlap with what they are copied to
            address = self.address + (source + done) * self._row_bytes
            size = min(shift, num_rows - done) * self._row_bytes
            self._device.copy(address - shift * self._row_bytes, address, size)

    def close(self) -> None:
        """Free the memory."""
        self._device.free(self.address)

    def _aligned(self, row: int) -> int:
        return -(-row // self._step) * self._step


def alignment_rows(vocab_size: int) -> int:
    """Return the fewest rows that are a whole number of alignments; 1 where the vocabulary is a multiple of 64."""
    return ALIGNMENT // math.gcd(ALIGNMENT, vocab_size * 4)


def num_bytes_of(max_rows: int, vocab_size: int) -> int:
    """Return the bytes of `max_rows` rows, of one that is written and not wanted, and of those that are skipped."""
    return (max_rows + alignment_rows(vocab_size)) * vocab_size * 4
