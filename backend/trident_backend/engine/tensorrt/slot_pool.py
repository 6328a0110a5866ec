"""The KV cache on the device: one allocation for the keys and one for the values of each layer.

Owns that memory, the addresses of slots, copies between them, and that a slot keeps nothing of its last sequence.
Never knows which sequence has which slot.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from trident_backend.engine.gpu.device import Device
from trident_backend.engine.tensorrt import names


@dataclass(frozen=True)
class SlotTensor:
    """One slot of one cache: `[num_heads, slot_len, head_dim]`.

    Args:
        num_heads: of keys or values, on this device.
        slot_len: positions.
        head_dim: numbers of a head.
        itemsize: bytes of a number.
    """

    num_heads: int
    slot_len: int
    head_dim: int
    itemsize: int

    @property
    def row_bytes(self) -> int:
        """Bytes of one position of one head."""
        return self.head_dim * self.itemsize

    @property
    def num_bytes(self) -> int:
        """Bytes of a slot."""
        return math.prod((self.num_heads, self.slot_len, self.row_bytes))


class SlotPool:
    """`num_slots` slots of every cache.

    Args:
        device: whose memory.
        tensors: the caches by name, `key_cache.<layer>` and `value_cache.<layer>`.
        num_slots: how many sequences they hold.
    """

    def __init__(self, device: Device, tensors: Mapping[str, SlotTensor], num_slots: int) -> None:
        self._device = device
        self._tensors = tensors
        self._addresses: dict[str, int] = {}
        #: For each slot, how many of its first positions may be other than zero; the last position always may.
        self._num_written = [0] * num_slots
        try:
            for name, tensor in tensors.items():
                self._addresses[name] = device.allocate(num_slots * tensor.num_bytes)
                device.zero(self._addresses[name], num_slots * tensor.num_bytes)
        except BaseException:
            self.close()
            raise

    def addresses(self, first_slot: int) -> dict[str, int]:
        """Return the addresses of the caches for a call whose first sequence has this slot, by input and output."""
        addresses = {}
        for name, address in self._addresses.items():
            addresses[name] = addresses[names.updated(name)] = address + first_slot * self._tensors[name].num_bytes
        return addresses

    def copy(self, source: int, target: int, num_tokens: int) -> None:
        """Enqueue the copy of a slot's first tokens to another slot, where nothing else is left."""
        self.cut(target, 0)
        self._num_written[target] = num_tokens
        for name, address in self._addresses.items():
            tensor = self._tensors[name]
            self._device.copy_2d(
                address + target * tensor.num_bytes,
                address + source * tensor.num_bytes,
                pitch=tensor.slot_len * tensor.row_bytes,
                width=num_tokens * tensor.row_bytes,
                height=tensor.num_heads,
            )

    def write(self, slot: int, start: int, end: int) -> None:
        """Prepare a slot for a call that writes these positions: enqueue zeros behind the first of them."""
        self.cut(slot, start)
        self._num_written[slot] = end

    def cut(self, slot: int, num_tokens: int) -> None:
        """Enqueue zeros behind a slot's first tokens, wherever it was written.

        What was there may be NaN, and a kernel with a mask multiplies with what it masks: NaN times nothing is NaN.
        """
        end = self._num_written[slot]
        if num_tokens < end:
            for name, address in self._addresses.items():
                tensor = self._tensors[name]
                pitch, row = tensor.slot_len * tensor.row_bytes, tensor.row_bytes
                start = address + slot * tensor.num_bytes
                for first, last in ((num_tokens, end), (tensor.slot_len - 1, tensor.slot_len)):
                    self._device.zero_2d(start + first * row, pitch, (last - first) * row, tensor.num_heads)
            self._num_written[slot] = num_tokens

    def close(self) -> None:
        """Free the memory."""
        while self._addresses:
            self._device.free(self._addresses.popitem()[1])
