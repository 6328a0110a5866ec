"""One step on one GPU: copies of slots, the decode call, the chunks of prompts.

Owns the order of what is enqueued. Never chooses what a step computes.
"""

from __future__ import annotations

from contextlib import ExitStack, suppress

import numpy as np

from trident_backend.engine.gpu.device import Device
from trident_backend.engine.gpu.device_logits import DeviceLogits
from trident_backend.engine.protocol import EngineSpec, Int32Array, StepBatch
from trident_backend.engine.tensorrt.graphs import DecodeGraphs
from trident_backend.engine.tensorrt.network_runner import NetworkRunner
from trident_backend.engine.tensorrt.sampling_plans import SamplingPlans
from trident_backend.engine.tensorrt.step_inputs import StepCalls, split
from trident_ensemble.contract.errors import EngineError, EngineLostError


class TensorRTEngine:
    """A loaded plan with its KV slots; used by one thread at a time. Other Python threads run while a step computes.

    Args:
        device: where everything is.
        runner: of the network's calls.
        graphs: of its decode calls.
        sampling: what is asked of the logits, where they are.
        spec: the limits, as the manifest states them.
    """

    def __init__(
        self,
        device: Device,
        runner: NetworkRunner,
        graphs: DecodeGraphs,
        sampling: SamplingPlans,
        spec: EngineSpec,
    ) -> None:
        #: What `close` frees.
        self.resources = ExitStack()
        self._device = device
        self._runner = runner
        self._graphs = graphs
        self._sampling = sampling
        self._spec = spec
        self._submitted: tuple[int, Int32Array] | None = None

    @property
    def spec(self) -> EngineSpec:
        """The engine's limits, as its manifest states them."""
        return self._spec

    def submit(self, batch: StepBatch) -> None:
        """Enqueue one step.

        Raises:
            EngineLostError: the GPU does not come back from the failure.
        """
        calls = split(batch, self._runner.layout.slot_len, self._graphs.padded)
        try:
            self._device.select()
            self._enqueue(batch, calls)
        except EngineError as error:
            raise self._failure(len(batch.past_lens), error) from None
        self._submitted = len(batch.past_lens), calls.buffer_rows

    def collect(self) -> DeviceLogits:
        """Wait for the submitted step.

        Raises:
            EngineLostError: the GPU does not come back from the failure.
        """
        assert self._submitted is not None, "no step was submitted"
        (num_seqs, buffer_rows), self._submitted = self._submitted, None
        try:
            self._device.synchronize()
        except EngineError as error:
            raise self._failure(num_seqs, error) from None
        return DeviceLogits(self._sampling, self._runner.logits.address, buffer_rows)

    def close(self) -> None:
        """Free everything; what a broken GPU does not take back is freed with the process."""
        with suppress(EngineError):
            self._device.select()
            if self._submitted is not None:
                self.collect()
        with suppress(EngineError):
            self.resources.close()

    def _failure(self, num_seqs: int, error: EngineError) -> EngineError:
        """Wait for what was enqueued before the failure, as the next step writes its inputs where that may read."""
        text = f"a step of {num_seqs} sequences failed: {error}"
        try:
            self._device.synchronize()
        except EngineError:  # what fails a second time fails for good: CUDA keeps a GPU's errors
            return EngineLostError(f"{text}; the GPU is lost to this process")
        return EngineError(text)

    def _enqueue(self, batch: StepBatch, calls: StepCalls) -> None:
        runner = self._runner
        for source, target, num_tokens in batch.block_copies.tolist():
            runner.slots.copy(source, target, num_tokens)
        ends = batch.past_lens + np.diff(batch.subsequence_begins)
        for slot, start, end in zip(batch.block_indices.tolist(), batch.past_lens.tolist(), ends.tolist(), strict=True):
            runner.slots.write(slot, start, end)
        inputs = runner.inputs.upload(calls)
        if calls.decode is not None:
            self._graphs.run(calls.decode.shape[0])
        for call, addresses in zip(calls.prefills, inputs, strict=True):
            runner.run_prefill(call, addresses)
