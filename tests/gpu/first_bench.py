"""Memory and clocks for the first minutes on a GPU.

Owns what it allocates, which `close` frees. Never knows what is computed.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from tests.cuda.calls import narrow
from trident_backend.engine.gpu.device import Device

Array = npt.NDArray[Any]
_PATTERN_BYTES = 1 << 24


class Bench:
    """A device with the arrays of measurements.

    Args:
        device: which one.
        min_seconds: that a measurement takes at least.
    """

    def __init__(self, device: Device, min_seconds: float = 0.1) -> None:
        self.device = device
        self._min_seconds = min_seconds
        self._addresses: list[int] = []

    def put(self, array: Array) -> int:
        """Copy an array to the device; returns its address."""
        array = np.ascontiguousarray(array)
        address = self.empty(array.nbytes)
        if array.nbytes:
            self.device.upload(address, array)
            self.device.synchronize()
        return address

    def get(self, address: int, like: Array) -> Array:
        """Copy an array of the shape and type of `like` from the device."""
        found = np.empty_like(like)
        self.device.download(found, address)
        self.device.synchronize()
        return found

    def empty(self, num_bytes: int) -> int:
        """Allocate memory that is NaN all through."""
        address = self.device.allocate(max(16, num_bytes))
        self._addresses.append(address)
        self.device.fill_nan(address, max(16, num_bytes))
        return address

    def random(self, num_bytes: int) -> int:
        """Allocate memory full of random numbers of bf16, which as bytes are of all kinds."""
        address = self.empty(num_bytes)
        size = min(num_bytes, _PATTERN_BYTES)
        numbers = np.random.default_rng(0).standard_normal(-(-size // 2)).astype(np.float32)
        pattern = self.put(narrow(numbers, "bf16"))
        for begin in range(0, num_bytes, size):
            self.device.copy(address + begin, pattern, min(size, num_bytes - begin))
        self.device.synchronize()
        return address

    def seconds(self, enqueue: Callable[[int], None]) -> float:
        """How long it takes, as the mean of many that follow one another; it is told the number of each."""
        enqueue(0)
        self.device.synchronize()
        number = 1
        while True:
            begin = time.perf_counter()
            for index in range(number):
                enqueue(index)
            self.device.synchronize()
            taken = time.perf_counter() - begin
            if taken >= self._min_seconds:
                return taken / number
            number = min(1000 * number, max(2 * number, int(number * 1.2 * self._min_seconds / max(taken, 1e-6))))

    def close(self) -> None:
        """Free everything."""
        self.device.synchronize()
        while self._addresses:
            self.device.free(self._addresses.pop())
