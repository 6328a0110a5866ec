"""The engine host for networks compiled by OpenVINO.

Owns the compiled network, its one infer request, the KV pool and the sampling kernels. Takes every limit from the
manifest, which it checks against the network's own geometry. Never schedules and never samples.
"""

from __future__ import annotations

import collections.abc as cabc
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov

from trident_backend.engine.host_logits import HostLogits
from trident_backend.engine.openvino.kernels import OpenVINOKernels
from trident_backend.engine.openvino.names import MAX_CONTEXT_LEN, STEP_VECTORS
from trident_backend.engine.openvino.network import CacheGeometry, cache_geometry, compile_network
from trident_backend.engine.protocol import EngineSpec, Int32Array, StepBatch
from trident_backend.engine.warm_up import warm_up
from trident_ensemble.contract import layout
from trident_ensemble.contract.errors import ArtifactError, EngineError
from trident_ensemble.contract.manifest import KVKind, Manifest


def load(folder: Path, manifest: Manifest, _gpus: cabc.Sequence[int] = ()) -> OpenVINOEngine:
    """Compile the folder's network for this machine's CPUs, allocate its KV pool, and compute the first steps.

    Args:
        folder: the engine's.
        manifest: its manifest.

    Raises:
        ArtifactError: the network cannot be read, or its cache is not what the manifest says.
        EngineError: OpenVINO failed in a step.
    """
    try:
        network = ov.Core().read_model(folder / layout.NETWORK_FILE)
        compiled = compile_network(network, manifest.precision)
    except RuntimeError as error:
        raise ArtifactError(f"{layout.NETWORK_FILE}: OpenVINO {ov.__version__} cannot compile it: {error}") from None
    geometry = cache_geometry(compiled)
    _check(compiled, geometry, manifest)
    engine = OpenVINOEngine(compiled, geometry, EngineSpec.from_manifest(manifest))
    warm_up(engine)
    return engine


class OpenVINOEngine:
    """One compiled network with its KV cache; used by one thread at a time.

    A step runs on OpenVINO's own threads, so that Python threads run meanwhile, the one that submitted it among them.

    Args:
        compiled: the network, compiled by `compile_network`.
        geometry: of its KV cache.
        spec: the limits that its manifest states.
    """

    def __init__(self, compiled: Any, geometry: CacheGeometry, spec: EngineSpec) -> None:
        self._spec = spec
        self._kernels = OpenVINOKernels(spec.vocab_size)
        self._request = compiled.create_infer_request()
        self._indices = {port.get_any_name(): index for index, port in enumerate(compiled.inputs)}
        self._submitted: tuple[StepBatch, Int32Array] | None = None
        self._cache = []
        for tensor in geometry.tensors:
            shape = ov.Shape([spec.num_blocks, *tensor.block_shape])
            self._cache.append(ov.Tensor(tensor.element_type, shape))
            self._request.set_tensor(tensor.name, self._cache[-1])

    @property
    def spec(self) -> EngineSpec:
        """The engine's limits, as its manifest states them."""
        return self._spec

    def submit(self, batch: StepBatch) -> None:
        """Begin to compute one step on OpenVINO's own threads.

        Raises:
            EngineError: OpenVINO refuses the step's arrays.
        """
        request = self._request
        for source, target, _ in batch.block_copies:
            for cache in self._cache:
                cache.data[target] = cache.data[source]
        context = np.array(batch.max_context_len, np.int32)
        try:
            for name in STEP_VECTORS:
                tensor = ov.Tensor(getattr(batch, name), shared_memory=True)
                request.set_input_tensor(self._indices[name], tensor)
            request.set_input_tensor(self._indices[MAX_CONTEXT_LEN], ov.Tensor(context, shared_memory=True))
            request.start_async()
        except RuntimeError as error:
            raise _failure(batch, error) from None
        # The tensors share the arrays' memory, which must live until the step is computed.
        self._submitted = batch, context

    def collect(self) -> HostLogits:
        """Wait for the submitted step; its logits are a view of the network's own output.

        Raises:
            EngineError: OpenVINO failed in the step.
        """
        assert self._submitted is not None, "no step was submitted"
        (batch, _), self._submitted = self._submitted, None
        try:
            self._request.wait()
        except RuntimeError as error:
            raise _failure(batch, error) from None
        return HostLogits(self._request.get_output_tensor(0).data, self._kernels)

    def close(self) -> None:
        """Free the network and the KV pool, once no step writes to it any more."""
        if self._submitted is not None:
            with suppress(EngineError):
                self.collect()
        self._request = None
        self._cache.clear()


def _failure(batch: StepBatch, error: RuntimeError) -> EngineError:
    return EngineError(f"a step of {len(batch.past_lens)} sequences failed: {error}")


def _check(compiled: Any, geometry: CacheGeometry, manifest: Manifest) -> None:
    """Refuse a manifest that does not say what the compiled network is.

    Raises:
        ArtifactError: it differs; names the field.
    """
    inputs = {port.get_any_name() for port in compiled.inputs} - {tensor.name for tensor in geometry.tensors}
    if inputs != {*STEP_VECTORS, MAX_CONTEXT_LEN}:
        raise ArtifactError(f"{layout.NETWORK_FILE}: its inputs are {', '.join(sorted(inputs))}; build again")
    vocab_size = compiled.outputs[0].get_partial_shape()[1].get_length()
    facts = (
        ("architecture.vocab_size", manifest.architecture.vocab_size, vocab_size),
        ("architecture.num_layers", manifest.architecture.num_layers, len(geometry.tensors) // 2),
        ("kv_cache.kind", manifest.kv_cache.kind.value, KVKind.BLOCKS.value),
        ("kv_cache.block_size", manifest.kv_cache.block_size, geometry.block_size),
        ("kv_cache.block_bytes", manifest.kv_cache.block_bytes, geometry.block_bytes),
    )
    for field, stated, found in facts:
        if stated != found:
            raise ArtifactError(f"{field}: the manifest says {stated}, the compiled network has {found}; build again")
