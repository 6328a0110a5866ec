"""Copies between host and device memory, as CUDA makes them.

Owns when the memory of either side is read and written, and that its side is the one that was named.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import numpy as np

from tests.tensorrt.double.gpu import DEVICE, GPUS, PINNED, Bytes, Fault

Region = Callable[[], Bytes]


def copy_rows(
    target: tuple[int, int, bool], source: tuple[int, int, bool], width: int, height: int, stream: int
) -> None:
    """Enqueue the copy of `height` rows of `width` bytes.

    Args:
        target: address, pitch, and whether it is on the device.
        source: the same.
        width: bytes.
        height: rows.
        stream: its handle.
    """
    (to, to_pitch, to_device), (start, pitch, from_device) = target, source
    if width > min(pitch, to_pitch):
        raise Fault(1, f"rows of {width} bytes, {pitch} and {to_pitch} bytes apart")
    read = _region(start, (height - 1) * pitch + width, from_device)
    write = _region(to, (height - 1) * to_pitch + width, to_device)
    is_pageable = not to_device and GPUS.block_at(to) is None
    if not from_device and GPUS.block_at(start) is None:
        read = _now(read())  # pageable memory is read before the call returns

    def work() -> None:
        rows, places = read(), write()
        if np.shares_memory(rows, places) and _overlap((to, to_pitch), (start, pitch), width, height):
            raise Fault(700, "a copy overlaps with what it copies")
        for row in range(height):
            places[row * to_pitch : row * to_pitch + width] = rows[row * pitch : row * pitch + width]

    GPUS.enqueue(stream, work)
    if is_pageable:
        GPUS.run(GPUS.stream(stream))


def _region(address: int, num_bytes: int, on_device: bool) -> Region:
    block = GPUS.block_at(address)
    if on_device:
        if block is None or block.kind != DEVICE:
            raise Fault(1, f"address {address:#x} is no device memory")
        return lambda: GPUS.view(address, num_bytes)
    if block is None:
        memory = (ctypes.c_uint8 * num_bytes).from_address(address)
        return lambda: np.ctypeslib.as_array(memory)
    if block.kind == DEVICE:
        raise Fault(1, f"address {address:#x} is no host memory")
    return lambda: GPUS.view(address, num_bytes, PINNED)


def _now(memory: Bytes) -> Region:
    taken = memory.copy()
    return lambda: taken


def _overlap(target: tuple[int, int], source: tuple[int, int], width: int, height: int) -> bool:
    """Whether a row that is written has bytes of one that is read; sides are an address and a pitch."""
    written, read = ([base + row * pitch for row in range(height)] for base, pitch in (target, source))
    return any(abs(one - other) < width for one in written for other in read)
