"""The KV cache on the device: one allocation for the keys and one for the values of each layer.

Owns that memory, the addresses of slots, copies between them, and that nothing is left in one of who had it before.
Never knows whose slot is whose.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from trident_backend.engine.tensorrt.device import Device


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
        try:
            for name, tensor in tensors.items():
                self._addresses[name] = device.allocate(num_slots * tensor.num_bytes)
                device.zero(self._addresses[name], num_slots * tensor.num_bytes)
        except BaseException:
            self.close()
            raise

    def addresses(self, first_slot: int) -> dict[str, int]:
        """Where the caches begin for a call whose first sequence has this slot, by the network's inputs and outputs."""
        places = {}
        for name, address in self._addresses.items():
            places[name] = places[f"new_{name}"] = address + first_slot * self._tensors[name].num_bytes
        return places

    def begin(self, source: int, target: int, num_tokens: int) -> None:
        """Enqueue that a slot holds the first tokens of a slot, which may be itself, and behind them zeros.

        What was there before may be NaN, and a kernel with a mask multiplies with what it masks: NaN times nothing is
        NaN.
        """
        for name, address in self._addresses.items():
            tensor = self._tensors[name]
            place, pitch = address + target * tensor.num_bytes, tensor.slot_len * tensor.row_bytes
            width = num_tokens * tensor.row_bytes
            if source != target and num_tokens:
                origin = address + source * tensor.num_bytes
                self._device.copy_2d(place, origin, pitch, width, tensor.num_heads)
            self._device.zero_2d(place + width, pitch, pitch - width, tensor.num_heads)

    def close(self) -> None:
        """Free the memory."""
        while self._addresses:
            self._device.free(self._addresses.popitem()[1])
