"""A deterministic engine without a network, for tests and for running the core where no compiler is.

Owns a real KV cache of token ids: each token is written to the block (or slot) and the position that its table says,
and the next token is computed from what is read back. So a wrong table, a leaked or wrongly shared block, and a copy
that is missing, too short or out of order show as a wrong token. Never schedules and never samples.
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
    """An engine whose next token is a hash of the whole context.

    A step is computed in `collect`, from the batch's own arrays, so that whatever changes them meanwhile shows. The
    logits of a step are spoilt when the next is submitted, so that reading them too late shows as well.

    Args:
        spec: the engine's limits.
        step_seconds: how long a step takes from `submit` on.

    Attributes:
        num_steps: steps submitted so far.
        fail_next: the next step to be collected fails, once.
    """

    def __init__(self, spec: EngineSpec, step_seconds: float = 0.0) -> None:
        self._spec = spec
        self._step_seconds = step_seconds
        self._cache: npt.NDArray[np.int64] = np.full((spec.num_blocks, spec.block_size), -1, np.int64)
        self._kernels = NumpyKernels()
        self._submitted: tuple[StepBatch, float] | None = None
        self._last_logits = np.empty((0, spec.vocab_size), np.float32)
        self.num_steps = 0
        self.fail_next = False

    @property
    def spec(self) -> EngineSpec:
        """The engine's limits."""
        return self._spec

    def submit(self, batch: StepBatch) -> None:
        """Take a step, which `collect` computes."""
        assert self._submitted is None, "the step before was not collected"
        assert len(batch.token_ids) <= self._spec.max_num_tokens
        assert len(batch.past_lens) <= self._spec.max_num_seqs
        self._last_logits[:] = np.nan
        self._submitted = batch, time.monotonic() + self._step_seconds
        self.num_steps += 1

    def collect(self) -> HostLogits:
        """Compute the submitted step.

        Raises:
            EngineError: `fail_next` was set.
        """
        assert self._submitted is not None, "no step was submitted"
        (batch, ends_at), self._submitted = self._submitted, None
        # 0 lets other threads run, as an engine does.
        time.sleep(max(0.0, ends_at - time.monotonic()) if self._step_seconds else 0)
        if self.fail_next:
            self.fail_next = False
            self._cache[batch.block_copies[:, 1]] = _JUNK
            raise EngineError("the mock engine was told to fail")
        self._last_logits = self._compute(batch)
        return HostLogits(self._last_logits, self._kernels)

    def close(self) -> None:
        """Drop what was submitted; there is nothing to free."""
        self._submitted = None

    def _compute(self, batch: StepBatch) -> npt.NDArray[np.float32]:
        spec = self._spec
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
                position = past_len + row - begin
                assert batch.position_ids[row] == position
                self._cache[table[position // spec.block_size], position % spec.block_size] = batch.token_ids[row]
                if row in wanted:
                    context = self._cache[table].reshape(-1)[: position + 1]
                    logits[wanted[row], next_token(context, spec.vocab_size)] = 1.0
        return logits


def next_token(context: npt.NDArray[np.int64], vocab_size: int) -> int:
    """Return what the mock engine generates after a context of token ids `[n]`."""
    positions = np.arange(1, len(context) + 1, dtype=np.int64)
    return int(((context + 1) * (positions * 2654435761 % 1000003)).sum() % vocab_size)


#: Not a token id; fills the parts of the cache that no step should read.
_JUNK = 1_000_003
