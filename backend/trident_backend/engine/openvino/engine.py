"""The engine host for networks compiled by OpenVINO.

Owns the compiled network, its one infer request, the KV pool and the sampling kernels. Never schedules, never samples,
and takes every limit from the manifest, which it holds against the network's own geometry.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov

from trident_backend.engine.host_logits import HostLogits
from trident_backend.engine.openvino.kernels import OpenVINOKernels
from trident_backend.engine.openvino.names import MAX_CONTEXT_LEN, STEP_VECTORS
from trident_backend.engine.openvino.network import CacheGeometry, cache_geometry, compile_network
from trident_backend.engine.protocol import EngineSpec, StepBatch
from trident_ensemble.contract import layout
from trident_ensemble.contract.errors import ArtifactError, EngineError
from trident_ensemble.contract.manifest import Manifest


def load(folder: Path, manifest: Manifest) -> OpenVINOEngine:
    """Compile the folder's network for this machine and allocate its KV pool.

    Raises:
        ArtifactError: the network cannot be read, or its cache is not what the manifest says.
    """
    try:
        network = ov.Core().read_model(folder / layout.NETWORK_FILE)
        compiled = compile_network(network, manifest.precision)
    except RuntimeError as error:
        raise ArtifactError(f"{layout.NETWORK_FILE}: OpenVINO {ov.__version__} cannot compile it: {error}") from None
    geometry = cache_geometry(compiled)
    _check(compiled, geometry, manifest)
    return OpenVINOEngine(compiled, geometry, EngineSpec.from_manifest(manifest))


class OpenVINOEngine:
    """One compiled network with its KV cache; not thread-safe. Other Python threads run while a step computes."""

    def __init__(self, compiled: Any, geometry: CacheGeometry, spec: EngineSpec) -> None:
        self._spec = spec
        self._kernels = OpenVINOKernels(spec.vocab_size)
        self._request = compiled.create_infer_request()
        self._indices = {port.get_any_name(): index for index, port in enumerate(compiled.inputs)}
        self._cache = []
        for tensor in geometry.tensors:
            shape = ov.Shape([spec.num_blocks, *tensor.block_shape])
            self._cache.append(ov.Tensor(tensor.element_type, shape))
            self._request.set_tensor(tensor.name, self._cache[-1])

    @property
    def spec(self) -> EngineSpec:
        """The engine's limits, as its manifest states them."""
        return self._spec

    def execute(self, batch: StepBatch) -> HostLogits:
        """Compute one step. See `Engine.execute`; the logits are a view of the network's own output."""
        request = self._request
        for source, target, _ in batch.block_copies:
            for cache in self._cache:
                cache.data[target] = cache.data[source]
        # The tensors share the arrays' memory, which `batch` keeps alive through the call.
        context = np.array(batch.max_context_len, np.int32)
        try:
            for name in STEP_VECTORS:
                tensor = ov.Tensor(getattr(batch, name), shared_memory=True)
                request.set_input_tensor(self._indices[name], tensor)
            request.set_input_tensor(self._indices[MAX_CONTEXT_LEN], ov.Tensor(context, shared_memory=True))
            request.infer()
            logits = request.get_output_tensor(0).data
        except RuntimeError as error:
            raise EngineError(f"a step of {len(batch.past_lens)} sequences failed: {error}") from None
        return HostLogits(logits, self._kernels)

    def close(self) -> None:
        """Free the network and the KV pool."""
        self._request = None
        self._cache.clear()


def _check(compiled: Any, geometry: CacheGeometry, manifest: Manifest) -> None:
    """Hold the manifest against the compiled network."""
    inputs = {port.get_any_name() for port in compiled.inputs} - {tensor.name for tensor in geometry.tensors}
    if inputs != {*STEP_VECTORS, MAX_CONTEXT_LEN}:
        raise ArtifactError(f"{layout.NETWORK_FILE}: its inputs are {', '.join(sorted(inputs))}; build again")
    vocab_size = compiled.outputs[0].get_partial_shape()[1].get_length()
    facts = (
        ("architecture.vocab_size", manifest.architecture.vocab_size, vocab_size),
        ("architecture.num_layers", manifest.architecture.num_layers, len(geometry.tensors) // 2),
        ("kv_cache.block_size", manifest.kv_cache.block_size, geometry.block_size),
        ("kv_cache.block_bytes", manifest.kv_cache.block_bytes, geometry.block_bytes),
    )
    for field, stated, found in facts:
        if stated != found:
            raise ArtifactError(f"{field}: the manifest says {stated}, the compiled network has {found}; build again")
