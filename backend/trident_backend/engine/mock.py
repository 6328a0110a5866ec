"""A deterministic engine without a network, for tests and for running the core where no compiler is.

It really keeps a KV cache: each token is written to the block, or slot, and place its table says, and the next token is
computed from what is read back, so that a wrong table, a leaked or a shared block, a copy that is missing, too short or
out of order shows as a wrong token.
"""

from __future__ import annotations

import time

import numpy as np
import numpy.typing as npt

from trident_backend.engine.host_logits import HostLogits
from trident_backend.engine.numpy_kernels import NumpyKernels
from trident_backend.engine.protocol import EngineSpec, StepBatch
from trident_ensemble.contract.errors import EngineError
from trident_ensemble.contract.manifest import KVKind


class MockEngine:
    """Next token: a hash of the whole context.

    Args:
        spec: the engine's limits.
        step_seconds: how long a step takes.
    """

    def __init__(self, spec: EngineSpec, step_seconds: float = 0.0) -> None:
        self._spec = spec
        self._step_seconds = step_seconds
        self._cache: npt.NDArray[np.int64] = np.full((spec.num_blocks, spec.block_size), -1, np.int64)
        self._kernels = NumpyKernels()
        self.num_steps = 0
        self.fail_next = False

    @property
    def spec(self) -> EngineSpec:
        """The engine's limits."""
        return self._spec

    def execute(self, batch: StepBatch) -> HostLogits:
        """See `Engine.execute`; fails once after `fail_next` was set."""
        spec = self._spec
        assert len(batch.token_ids) <= spec.max_num_tokens
        assert len(batch.past_lens) <= spec.max_num_seqs
        self.num_steps += 1
        time.sleep(self._step_seconds)  # 0 lets other threads run, as an engine does
        if self.fail_next:
            self.fail_next = False
            self._cache[batch.block_copies[:, 1]] = _JUNK
            raise EngineError("the mock engine was told to fail")
        for source, target, num_tokens in batch.block_copies:
            assert source != target
            self._cache[target, :num_tokens] = self._cache[source, :num_tokens]
            self._cache[target, num_tokens:] = _JUNK
        wanted = {int(row): index for index, row in enumerate(batch.logit_rows)}
        logits = np.zeros((len(wanted), spec.vocab_size), np.float32)
        for index, past_len in enumerate(batch.past_lens.tolist()):
            begin, end = batch.subsequence_begins[index : index + 2].tolist()
            first, last = batch.block_indices_begins[index : index + 2].tolist()
            table = batch.block_indices[first:last]
            assert spec.kv_kind is KVKind.BLOCKS or len(table) == 1
            for row in range(begin, end):
                place = past_len + row - begin
                assert batch.position_ids[row] == place
                self._cache[table[place // spec.block_size], place % spec.block_size] = batch.token_ids[row]
                if row in wanted:
                    context = self._cache[table].reshape(-1)[: place + 1]
                    logits[wanted[row], next_token(context, spec.vocab_size)] = 1.0
        return HostLogits(logits, self._kernels)

    def close(self) -> None:
        """Nothing to free."""


def next_token(context: npt.NDArray[np.int64], vocab_size: int) -> int:
    """What the mock engine generates after a context of token ids `[n]`."""
    places = np.arange(1, len(context) + 1, dtype=np.int64)
    return int(((context + 1) * (places * 2654435761 % 1000003)).sum() % vocab_size)


#: What no token is: lies where nobody should read.
_JUNK = 1_000_003
