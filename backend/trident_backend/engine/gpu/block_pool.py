"""The KV cache on the device: one allocation for the blocks of all layers.

Owns that memory, where each layer's keys and values lie in it, and the copies of blocks. Never knows which sequence has
which block.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np

from trident_backend.engine.gpu.device import Device
from trident_backend.engine.gpu.freeing import freed_on_failure
from trident_backend.engine.gpu.names import ALIGNMENT
from trident_backend.engine.gpu.program import ITEM_BYTES, AttentionCall, Program
from trident_backend.engine.protocol import EngineSpec, Int32Array
from trident_ensemble.contract.errors import ArtifactError

_COPY_BLOCKS = "attention.copy_blocks"
#: Copies are made in words of 32 bits, four at a time.
_WORD_BYTES = 4
_COPY_BYTES = 16
_PAIR_LEN = 2


class Launcher(Protocol):
    """A library of kernels that launches them by name, such as `KernelLibrary`."""

    def launch(self, name: str, grid: tuple[int, int, int], arguments: Mapping[str, int | float]) -> None:
        """Enqueue one launch."""
        ...


def block_bytes_of(program: Program, block_size: int) -> int:
    """Return the bytes of one block of keys and values through all layers."""
    return sum(sum(sizes) for sizes in block_sizes_of(program, block_size).values())


class BlockPool:
    """The blocks of every layer: keys `[num_blocks, kv_heads, block_size, head_dim]`, and values likewise.

    Args:
        device: whose memory.
        program: says which layers have which attention, and the type of the cache's numbers.
        spec: says how many blocks there are and how many tokens one has.

    Raises:
        ArtifactError: blocks cannot be copied.
        DeviceMemoryError: there is too little memory.
    """

    def __init__(self, device: Device, program: Program, spec: EngineSpec) -> None:
        self._device = device
        self._copy_blocks = _copy_kernel(program)
        sizes = block_sizes_of(program, spec.block_size)
        self._caches: dict[int, tuple[int, int]] = {}
        geometry, end = [], 0
        for layer, layer_sizes in sizes.items():
            begins = []
            for size in layer_sizes:
                begins.append(end)
                geometry.append((end // _WORD_BYTES, size // _WORD_BYTES))
                end += _aligned(size * spec.num_blocks)
            self._caches[layer] = (begins[0], begins[1])
        self._num_caches = len(geometry)
        #: Copies that are sent at a time: a step has no more unless sequences are paused and resumed in it.
        self._max_copies = spec.max_num_seqs
        copies_bytes = self._max_copies * _PAIR_LEN * 4
        self._pinned: Int32Array = device.pinned(copies_bytes).view(np.int32).reshape(-1, _PAIR_LEN)
        with freed_on_failure() as stack:

            def allocate(num_bytes: int) -> int:
                address = device.allocate(num_bytes)
                stack.callback(device.free, address)
                return address

            self._address = allocate(end)
            self._geometry = allocate(self._num_caches * 2 * 8)
            self._copies = allocate(copies_bytes)
            device.upload(self._geometry, np.array(geometry, np.int64))
        self._resources = stack

    def key_cache(self, layer: int) -> int:
        """Return the address of a layer's keys."""
        return self._address + self._caches[layer][0]

    def value_cache(self, layer: int) -> int:
        """Return the address of a layer's values."""
        return self._address + self._caches[layer][1]

    def copy(self, kernels: Launcher, copies: Int32Array) -> None:
        """Enqueue copies of blocks, through all layers, one after another.

        The copies of the step before must have been made.

        Args:
            kernels: with the program's kernel `attention.copy_blocks`.
            copies: `[C, 3]`, as `StepBatch.block_copies`; there need not be any.

        Raises:
            EngineError: something failed on the device.
        """
        for begin in range(0, len(copies), self._max_copies):
            if begin:
                self._device.synchronize()
            pairs = copies[begin : begin + self._max_copies, :_PAIR_LEN]
            self._pinned[: len(pairs)] = pairs
            self._device.upload(self._copies, self._pinned[: len(pairs)])
            arguments = {
                "pool": self._address,
                "geometry": self._geometry,
                "copies": self._copies,
                "num_copies": len(pairs),
            }
            kernels.launch(self._copy_blocks, (self._num_caches, 1, 1), arguments)

    def close(self) -> None:
        """Free the memory."""
        self._resources.close()


def _copy_kernel(program: Program) -> str:
    for name, kernel in program.kernels.items():
        if kernel.function == _COPY_BLOCKS:
            return name
    raise ArtifactError(f"program.kernels: there is no {_COPY_BLOCKS}; build again")


def block_sizes_of(program: Program, block_size: int) -> dict[int, tuple[int, int]]:
    """Return the bytes of a block's keys and of its values in each layer.

    Raises:
        ArtifactError: blocks cannot be copied.
    """
    item_bytes = ITEM_BYTES[program.cache_dtype]
    sizes = {}
    for call in program.body:
        if isinstance(call, AttentionCall):
            kind = program.attention_kinds[call.kind]
            lines = kind.num_kv_heads * block_size * item_bytes
            sizes[call.layer] = (lines * kind.head_dim, lines * kind.v_head_dim)
            if any(size % _COPY_BYTES for size in sizes[call.layer]):
                raise ArtifactError(
                    f"engine.kv_cache.block_size: {block_size} tokens of layer {call.layer} are no multiple of "
                    f"{_COPY_BYTES} bytes, in which blocks are copied; build again"
                )
    return sizes


def _aligned(num_bytes: int) -> int:
    return -(-num_bytes // ALIGNMENT) * ALIGNMENT
