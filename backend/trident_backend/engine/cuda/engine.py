"""One step on one GPU: copies of blocks, one upload, the body, the head.

Owns the order of what is enqueued. Never chooses what a step computes.
"""

from __future__ import annotations

from contextlib import ExitStack, suppress

import numpy as np

from trident_backend.engine.cuda.graphs import StepGraphs
from trident_backend.engine.gpu.block_pool import BlockPool
from trident_backend.engine.gpu.device import Device
from trident_backend.engine.gpu.device_logits import DeviceLogits
from trident_backend.engine.gpu.kernels import KernelLibrary
from trident_backend.engine.gpu.sampling_operations import SamplingOperations
from trident_backend.engine.gpu.step_inputs import StepInputBuffer
from trident_backend.engine.protocol import EngineSpec, StepBatch
from trident_ensemble.contract.errors import EngineError, EngineLostError


class CudaEngine:
    """A loaded program with its KV cache; used by one thread at a time. Other Python threads run while a step computes.

    Args:
        device: where everything is.
        spec: the limits, as the manifest states them.
        kernels: the program's.
        pool: the KV cache.
        inputs: of steps.
        graphs: run the program.
        sampling: what is asked of the logits, where they are.
        logits: the address of their buffer.
    """

    def __init__(
        self,
        device: Device,
        spec: EngineSpec,
        *,
        kernels: KernelLibrary,
        pool: BlockPool,
        inputs: StepInputBuffer,
        graphs: StepGraphs,
        sampling: SamplingOperations,
        logits: int,
    ) -> None:
        #: What `close` frees.
        self.resources = ExitStack()
        self._device = device
        self._spec = spec
        self._kernels = kernels
        self._pool = pool
        self._inputs = inputs
        self._graphs = graphs
        self._sampling = sampling
        self._logits = logits
        self._submitted: StepBatch | None = None

    @property
    def spec(self) -> EngineSpec:
        """The engine's limits, as its manifest states them."""
        return self._spec

    def submit(self, batch: StepBatch) -> None:
        """Enqueue one step.

        Raises:
            EngineError: the step failed, and the next one can be computed.
            EngineLostError: the GPU does not come back from the failure.
        """
        try:
            self._device.select()
            self._enqueue(batch)
        except EngineError as error:
            raise self._failure(batch, error) from None
        self._submitted = batch

    def collect(self) -> DeviceLogits:
        """Wait for the submitted step.

        Raises:
            EngineError: the step failed, and the next one can be computed.
            EngineLostError: the GPU does not come back from the failure.
        """
        assert self._submitted is not None, "no step was submitted"
        batch, self._submitted = self._submitted, None
        try:
            self._device.synchronize()
        except EngineError as error:
            raise self._failure(batch, error) from None
        return DeviceLogits(self._sampling, self._logits, np.arange(len(batch.logit_rows), dtype=np.int32))

    def close(self) -> None:
        """Free everything; what a broken GPU does not take back is freed with the process."""
        with suppress(EngineError):
            self._device.select()
            if self._submitted is not None:
                self.collect()
        with suppress(EngineError):
            self.resources.close()

    def _failure(self, batch: StepBatch, error: EngineError) -> EngineError:
        """Wait for what was enqueued before the failure, as the next step writes its inputs where that may read."""
        text = f"a step of {len(batch.past_lens)} sequences failed: {error}"
        try:
            self._device.synchronize()
        except EngineError:  # what fails a second time fails for good: CUDA keeps a GPU's errors
            return EngineLostError(f"{text}; the GPU is lost to this process")
        return EngineError(text)

    def _enqueue(self, batch: StepBatch) -> None:
        num_tokens = self._graphs.padded(len(batch.token_ids))
        num_rows = self._graphs.padded(len(batch.logit_rows))
        self._pool.copy(self._kernels, batch.block_copies)
        grids = self._inputs.upload(batch, num_tokens, num_rows)
        self._graphs.run_body(num_tokens, grids)
        if num_rows:
            self._graphs.run_head(num_rows)
