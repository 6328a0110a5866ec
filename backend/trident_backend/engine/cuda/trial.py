"""A trial of captured launches: a step is computed by them and by direct ones, and the logits are the same.

Owns what lies in memory before a trial: NaN wherever the step must write before it reads. Never captures anything.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import numpy as np

from trident_backend.engine.cuda.step_memory import StepMemory
from trident_backend.engine.gpu.block_pool import BlockPool, block_sizes_of
from trident_backend.engine.gpu.device import Device
from trident_backend.engine.gpu.program import Program
from trident_backend.engine.gpu.step_inputs import StepGrids, StepInputBuffer
from trident_backend.engine.protocol import EngineSpec, StepBatch

#: Enqueues the body of a step that has so much attention, or the head.
Body = Callable[[StepGrids], None]
Head = Callable[[], None]

#: Bytes of logits that the host holds at a time.
_PIECE_BYTES = 32 * 2**20


class Trial:
    """Runs the steps of `TrialSteps`.

    Args:
        device: where.
        program: whose launches are tried.
        spec: the engine's limits.
        inputs: of steps.
        pool: the KV cache, whose first blocks are overwritten.
        memory: that launches write.
    """

    def __init__(
        self,
        device: Device,
        program: Program,
        spec: EngineSpec,
        *,
        inputs: StepInputBuffer,
        pool: BlockPool,
        memory: StepMemory,
    ) -> None:
        self._device = device
        self._inputs = inputs
        self._memory = memory
        self._vocab_size = program.vocab_size
        #: Where keys and values of each layer lie, and the bytes of one block of them.
        self._caches: list[tuple[int, int]] = []
        for layer, (key_bytes, value_bytes) in block_sizes_of(program, spec.block_size).items():
            self._caches += [(pool.key_cache(layer), key_bytes), (pool.value_cache(layer), value_bytes)]

    def digest_of(self, batch: StepBatch, num_tokens: int, body: Body, head: Head) -> bytes:
        """Compute a step and return the digest of its logits, `[R, vocab_size]`, as they lie in memory.

        Args:
            batch: the step; its first block stands for all that was before it.
            num_tokens: as many as the step is padded to.
            body: what computes the body.
            head: what computes the head for the step's rows, as many as there are.

        Raises:
            EngineError: the device failed.
        """
        self._memory.poison()
        num_blocks = int(batch.block_indices.max()) + 1
        for address, size in self._caches:
            self._device.zero(address, size)
            self._device.fill_nan(address + size, (num_blocks - 1) * size)
        num_rows = len(batch.logit_rows)
        body(self._inputs.upload(batch, num_tokens, num_rows))
        head()
        return self._digest(num_rows * self._vocab_size * 4)

    def _digest(self, num_bytes: int) -> bytes:
        """Return the digest of the first bytes of the logits, of which the host holds a few at a time."""
        digest = hashlib.blake2b()
        piece = np.empty(min(num_bytes, _PIECE_BYTES), np.uint8)
        for begin in range(0, num_bytes, _PIECE_BYTES):
            part = piece[: num_bytes - begin]
            self._device.download(part, self._memory.logits + begin)
            self._device.synchronize()
            digest.update(part.data)
        return digest.digest()
