"""The first use of the kernels that the first steps of an engine do not launch.

Owns which they are: those of sampling, and the one that copies blocks. The driver loads a kernel at its first launch,
which takes time and memory that no request should wait for, or be the one to miss. Never looks at what is computed.
"""

from __future__ import annotations

import numpy as np

from trident_backend.engine.gpu.block_pool import BlockPool
from trident_backend.engine.gpu.device_logits import DeviceLogits
from trident_backend.engine.gpu.kernels import KernelLibrary
from trident_backend.engine.gpu.sampling_operations import SamplingOperations
from trident_backend.engine.protocol import RowPenalties


def use_kernels(kernels: KernelLibrary, pool: BlockPool, sampling: SamplingOperations, logits: int) -> None:
    """Copy the first block to itself, and run each of sampling's operations on the first row of logits.

    Args:
        kernels: of the engine.
        pool: the KV cache.
        sampling: the operations.
        logits: the address of the buffer, which is overwritten.

    Raises:
        EngineError: the device failed.
    """
    pool.copy(kernels, np.zeros((1, 3), np.int32))
    row = np.zeros(1, np.intp)
    first, one = np.zeros(1, np.int64), np.ones(1, np.float32)
    none, no_offsets = np.empty(0, np.int64), np.zeros(1, np.float32)
    found = DeviceLogits(sampling, logits, np.zeros(1, np.int32))
    found.write(row, first, one)
    found.read(row, first)
    found.argmax(row)
    found.chunk_exp_sums(row, one, np.ones(1))
    found.find_ties(row, one, np.ones(1, np.int64))
    for count in sampling.sizes:
        found.top_k(row, count)
    found.penalise(row, [RowPenalties(np.float32(1), none, first, no_offsets, None)])
    words = -(-sampling.vocab_size // 32)
    found.apply_token_bitmask(row, np.full((1, words), 0xFFFFFFFF, np.uint32))
    sampling.device.synchronize()
