"""The double's GPUs: memory that knows its bounds, and streams that run as late as they may.

Owns allocations, streams and what was captured. Work runs when somebody waits for it and not before, so that a result
read too soon, or an input written too soon, shows. What has no defined behaviour on a real GPU is a fault here.
"""

from __future__ import annotations

import bisect
import os
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]
Work = Callable[[], None]

_ALIGNMENT = 256
#: What fresh memory holds: NaN in every floating-point format.
_JUNK = 0xFF
DEVICE, PINNED = "device", "pinned"


class Fault(Exception):  # noqa: N818 (not only errors of the program under test)
    """A call of CUDA that fails: with which code and why."""

    def __init__(self, code: int, why: str) -> None:
        super().__init__(why)
        self.code = code


@dataclass
class Block:
    """One allocation."""

    base: int
    num_bytes: int
    kind: str
    device: int
    memory: Bytes = field(repr=False)


@dataclass
class Stream:
    """Work in its order; `captured` while it is recorded instead."""

    device: int
    queue: list[Work] = field(default_factory=list)
    captured: list[Work] | None = None
    is_spoilt: bool = False


class Gpus:
    """All GPUs of the process."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """A new machine."""
        self.total_bytes = int(os.environ.get("DOUBLE_GPU_BYTES", str(2**30)))
        self.num_devices = int(os.environ.get("DOUBLE_GPUS", "1"))
        self.capability = (8, 9)
        self.num_multiprocessors = 4
        self.streams: dict[int, Stream] = {}
        self.graphs: dict[int, list[Work]] = {}
        #: Kernels that were loaded, as the double of the driver keeps them.
        self.libraries: dict[int, Any] = {}
        self._lost: Fault | None = None
        self._blocks: dict[int, Block] = {}
        self._bases: list[int] = []
        self._next_handle = 1
        self._current = threading.local()

    @property
    def current(self) -> int:
        """The calling thread's GPU."""
        return int(getattr(self._current, "ordinal", 0))

    @current.setter
    def current(self, ordinal: int) -> None:
        self._current.ordinal = ordinal

    @property
    def blocks(self) -> list[Block]:
        """What is allocated."""
        return list(self._blocks.values())

    def free_bytes(self) -> int:
        used = sum(b.num_bytes for b in self._blocks.values() if b.kind == DEVICE and b.device == self.current)
        return self.total_bytes - used

    def check(self) -> None:
        """Nothing works on a GPU that was lost."""
        if self._lost is not None:
            raise self._lost

    def lose(self, fault: Fault) -> None:
        """From now on every call fails."""
        print(f"double: {fault}", file=sys.stderr, flush=True)
        self._lost = fault
        for stream in self.streams.values():
            stream.queue.clear()

    def handle(self) -> int:
        self._next_handle += 1
        return self._next_handle

    def allocate(self, num_bytes: int, kind: str = DEVICE) -> int:
        if kind == DEVICE and num_bytes > self.free_bytes():
            raise Fault(2, f"{num_bytes} bytes, {self.free_bytes()} are free")
        memory = np.full(num_bytes + 2 * _ALIGNMENT, _JUNK, np.uint8)
        base = -(-memory.ctypes.data // _ALIGNMENT) * _ALIGNMENT
        start = base - memory.ctypes.data
        self._blocks[base] = Block(base, num_bytes, kind, self.current, memory[start : start + num_bytes])
        bisect.insort(self._bases, base)
        return base

    def free(self, address: int, kind: str = DEVICE) -> None:
        block = self._blocks.get(address)
        if block is None or block.kind != kind or (kind == DEVICE and block.device != self.current):
            raise Fault(1, f"address {address:#x} was not allocated as {kind} memory of GPU {self.current}")
        self.run_all()
        del self._blocks[address]
        self._bases.remove(address)

    def block_at(self, address: int) -> Block | None:
        """The allocation that an address lies in."""
        place = bisect.bisect_right(self._bases, address) - 1
        block = self._blocks[self._bases[place]] if place >= 0 else None
        return block if block is not None and address < block.base + max(block.num_bytes, 1) else None

    def view(self, address: int, num_bytes: int, kind: str = DEVICE) -> Bytes:
        """Memory to read and write.

        Raises:
            Fault: it is not allocated, not all of it, or elsewhere.
        """
        block = self.block_at(address)
        if block is None or block.kind != kind:
            raise Fault(700, f"{num_bytes} bytes at {address:#x}: no {kind} memory is there")
        start = address - block.base
        if start + num_bytes > block.num_bytes:
            raise Fault(700, f"{num_bytes} bytes at {start} of an allocation of {block.num_bytes} bytes")
        return block.memory[start : start + num_bytes]

    def stream(self, handle: int) -> Stream:
        found = self.streams.get(int(handle))
        if found is None or found.device != self.current:
            raise Fault(400, f"stream {handle} is none of GPU {self.current}'s, which is the calling thread's")
        return found

    def enqueue(self, handle: int, work: Work) -> None:
        stream = self.stream(handle)
        (stream.queue if stream.captured is None else stream.captured).append(work)

    def forbid_capture(self, what: str) -> None:
        """Spoil what is being captured, as some calls do."""
        for stream in self.streams.values():
            if stream.captured is not None:
                stream.is_spoilt = True
                raise Fault(900, f"{what} while a stream is captured")

    def run(self, stream: Stream) -> None:
        """Run what waits.

        Raises:
            Fault: of some work; the GPU is lost.
        """
        self.check()
        try:
            while stream.queue:
                stream.queue.pop(0)()
        except Fault as fault:
            self.lose(fault)
            raise

    def run_all(self) -> None:
        for stream in self.streams.values():
            self.run(stream)

    def leaks(self) -> list[str]:
        """What nobody has freed."""
        left = [repr(block) for block in self._blocks.values()]
        kept: dict[str, dict[int, Any]] = {"stream": self.streams, "graph": self.graphs, "library": self.libraries}
        return [*left, *(f"{kind} {name}" for kind, found in kept.items() for name in found)]


#: The machine; the CUDA and the TensorRT double share it.
GPUS = Gpus()
