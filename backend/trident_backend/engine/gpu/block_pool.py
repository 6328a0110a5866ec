"""The KV cache on the device: one allocation for the blocks of all layers.

Owns that memory, where each layer's keys and values lie in it, and the copies of blocks. Never knows which sequence has
which block.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from trident_backend.engine.cuda.program import Program
from trident_backend.engine.gpu.device import Device
from trident_backend.engine.protocol import EngineSpec, Int32Array


class Launcher(Protocol):
    """What launches kernels by name, as `KernelLibrary` does."""

    def launch(self, name: str, grid: tuple[int, int, int], arguments: Mapping[str, int | float]) -> None:
        """Enqueue one launch."""
        ...


def block_bytes_of(program: Program, block_size: int) -> int:
    """Return the bytes of one block of keys and values through all layers."""
    raise NotImplementedError


class BlockPool:
    """The blocks of every layer: keys `[num_blocks, kv_heads, block_size, head_dim]`, and values likewise.

    Args:
        device: whose memory.
        program: says which layers have which attention, and the type of the cache's numbers.
        spec: says how many blocks there are and how many tokens one has.

    Raises:
        DeviceMemoryError: there is too little memory.
    """

    def __init__(self, device: Device, program: Program, spec: EngineSpec) -> None:
        raise NotImplementedError

    @property
    def block_bytes(self) -> int:
        """Bytes of one block through all layers."""
        raise NotImplementedError

    def key_cache(self, layer: int) -> int:
        """Return the address of a layer's keys."""
        raise NotImplementedError

    def value_cache(self, layer: int) -> int:
        """Return the address of a layer's values."""
        raise NotImplementedError

    def copy(self, kernels: Launcher, copies: Int32Array) -> None:
        """Enqueue copies of blocks, through all layers, one after another.

        Args:
            kernels: with the program's kernel `attention.copy_blocks`.
            copies: `[C, 3]`, as `StepBatch.block_copies`; none is allowed.

        Raises:
            EngineError: something failed on the device.
        """
        raise NotImplementedError

    def close(self) -> None:
        """Free the memory."""
        raise NotImplementedError
