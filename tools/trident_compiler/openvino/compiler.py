"""Engines for CPUs, by OpenVINO: precisions, what the memory plan must know of a network, and writing one to disk.

Owns the calls of the compiler; the lowering beside it owns the operations. Never reads a checkpoint's files.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import openvino as ov

from trident_backend.engine.openvino.network import CacheGeometry, cache_geometry, compile_network
from trident_compiler.compiler import Progress, WeightFormats, describe_matrices, weights_of
from trident_compiler.families.family import Decoder
from trident_compiler.families.words import Attention
from trident_compiler.model_folder import Checkpoint
from trident_compiler.openvino.lowering import Network, OpenVINOLowering
from trident_compiler.openvino.precision_trials import Trials, choose, run_trials
from trident_compiler.openvino.probe import CompiledProbe, RandomWeights, probe_model
from trident_compiler.openvino.refusals import REFUSALS
from trident_compiler.planning.machine import Machine
from trident_compiler.planning.memory_plan import LimitsRequest, MemoryPlan, MemoryRequirements, make_plan
from trident_compiler.weights.formats import (
    BF16,
    FP16,
    FP32,
    INT4,
    INT8,
    QUANTIZED,
    activation_group,
    estimated_bytes,
)
from trident_compiler.weights.sharding import WHOLE
from trident_compiler.weights.weights import Weight, WeightSource
from trident_ensemble.contract import layout
from trident_ensemble.contract.errors import BuildError
from trident_ensemble.contract.manifest import Compiler, Precision, PrecisionChoice

#: The memory of weights in a running engine, as a multiple of their file: packed copies, some of them for two kernels.
RESIDENT_SHARE = 1.5
_POLL_SECONDS = 0.05


#: Tries the more exact and the other precision on a model whose tensors are stored in the dtype that is named last.
Measure = Callable[[Decoder, Precision, Precision, str], Trials]


class OpenVINOCompiler:
    """Compiles for this machine's CPU; an `EngineCompiler`.

    Args:
        machine: the one that will serve.
        measure: tries precisions; `measure_precisions` by default.
    """

    memory = "free"
    num_devices = 1
    refusals = REFUSALS

    def __init__(self, machine: Machine, measure: Measure | None = None) -> None:
        self._machine = machine
        self._measure = measure or measure_precisions
        self.compiler = Compiler("openvino", ov.__version__.partition("-")[0])

    def precision(self, opened: Checkpoint, compute: str | None, weight_format: str | None) -> Precision:
        """Return the number formats, as `EngineCompiler.precision` says.

        Compute is bf16 or fp32, by default the one that is measured to be faster on this machine. Weights are bf16,
        int8 or int4, by default as stored: 16 bits, or fp32 for fp32 tensors computed in fp32.
        """
        if weight_format not in {None, BF16, INT8, INT4}:
            raise BuildError(f"--weights {weight_format}: OpenVINO takes bf16, int8 or int4 on CPUs")
        check_compute(compute)
        if compute is not None:
            return _precision(opened, compute, weight_format, PrecisionChoice("as asked"))
        if not computes_bf16():
            reason = "this CPU cannot compute in bfloat16"
            return _precision(opened, "fp32", weight_format, PrecisionChoice(reason))
        exact = _precision(opened, "fp32", weight_format, PrecisionChoice())
        other = _precision(opened, "bf16", weight_format, PrecisionChoice())
        trials = self._measure(opened.model, exact, other, _stored_dtype(opened))
        chosen, choice = choose(exact.compute, other.compute, trials, self._machine.cpu)
        return replace(exact if chosen == exact.compute else other, choice=choice)

    def plan(self, opened: Checkpoint, precision: Precision, wanted: LimitsRequest) -> MemoryPlan:
        """Return the memory plan; the cache's geometry is that of compiled probes of the attention."""
        model = opened.model
        cache = probe_cache(model, precision)
        weights_bytes = estimated_bytes(model.outline.weights, precision.weights)
        needs = MemoryRequirements(
            weights_bytes=weights_bytes,
            resident_bytes=int(weights_bytes * RESIDENT_SHARE),
            block_size=cache.block_size,
            block_bytes=cache.block_bytes,
            max_position_embeddings=model.max_position_embeddings,
        )
        return make_plan(wanted, needs, self._machine.free_bytes)

    def describe_weights(self, opened: Checkpoint, precision: Precision) -> str:
        """Return the formats of the weights, for people."""
        return describe_matrices(opened, precision, formats_of(precision).matrix)

    def write(
        self,
        folder: Path,
        opened: Checkpoint,
        *,
        precision: Precision,
        plan: MemoryPlan,
        progress: Progress,
    ) -> None:
        """Write the network, which takes its precision and its cache when it is loaded."""
        source = weights_of(opened, formats_of(precision), progress)(WHOLE)
        network = lower(opened.model.served_at(plan.max_seq_len), source)
        progress.phase("writing the network", source.num_bytes)
        write_network(folder, network, progress.reached)


def measure_precisions(model: Decoder, exact: Precision, other: Precision, dtype: str) -> Trials:
    """Try two precisions on a few layers of a model's shape, for some hundred milliseconds.

    Args:
        model: whose shape it is.
        exact: the more exact precision.
        other: the other one.
        dtype: of the tensors as the checkpoint stores them, BF16, F16 or F32.
    """
    small = probe_model(model)
    return run_trials(_probe(small, exact, dtype), _probe(small, other, dtype))


def _probe(model: Decoder, precision: Precision, dtype: str) -> CompiledProbe:
    formats = formats_of(precision)
    precision = replace(precision, activation_group=activation_group(model.outline.weights, precision.weights))
    source = RandomWeights(dtype, formats.matrix, formats.plain, tied=model.outline.is_tied)
    net = OpenVINOLowering()
    return CompiledProbe(net.network(model.write(net, source), model.vocab_size), precision)


def formats_of(precision: Precision) -> WeightFormats:
    """Return how `WeightSource` prepares the weights of an engine of such a precision."""
    plain = FP32 if precision.weights == FP32 else plain_format(precision.compute)
    return WeightFormats(precision.weights if precision.weights in QUANTIZED else plain, plain, uniform=False)


def _precision(checkpoint: Checkpoint, compute: str, weight_format: str | None, choice: PrecisionChoice) -> Precision:
    as_stored = FP32 if compute == "fp32" and _stored_dtype(checkpoint) == "F32" else BF16
    weights = weight_format or as_stored
    group = activation_group(checkpoint.model.outline.weights, weights)
    return Precision(compute, weights, kv_precision(compute), choice, group)


def _stored_dtype(checkpoint: Checkpoint) -> str:
    """Return the dtype of the matrices: F32 or F16 where all are so, BF16 where any is or they differ."""
    stored = checkpoint.tensors.matrix_dtypes
    return next(iter(stored)) if len(stored) == 1 else "BF16"


def check_compute(compute: str | None) -> None:
    """Refuse a computation that CPUs, or this one, cannot do.

    Raises:
        BuildError: names it.
    """
    if compute not in {None, "bf16", "fp32"}:
        raise BuildError(f"--precision {compute}: OpenVINO computes in bf16 or fp32 on CPUs")
    if compute == "bf16" and not computes_bf16():
        raise BuildError("--precision bf16: this CPU cannot compute in bfloat16, which takes AVX-512; use fp32")


def computes_bf16() -> bool:
    """Return whether the plugin can compute in bfloat16 on this CPU; it needs AVX-512."""
    return "BF16" in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def plain_format(compute: str) -> str:
    """Return the 16-bit format that the plugin handles best.

    Its fused feed-forward in bf16 takes float16 constants, while bf16 constants keep the checkpoint's values exactly.
    """
    return FP16 if compute == "bf16" else BF16


def kv_precision(compute: str) -> str:
    """Return the KV cache's format, which is the computation's: exact, and faster than the plugin's default of u8."""
    return "bf16" if compute == "bf16" else "f32"


@dataclass(frozen=True)
class NetworkCache:
    """The paged KV cache of a whole network.

    Args:
        block_size: tokens in one block.
        block_bytes: one block of keys and values through all layers.
    """

    block_size: int
    block_bytes: int


def probe_cache(model: Decoder, precision: Precision) -> NetworkCache:
    """Return the cache that a network of these layers will have, read off compiled networks of attention alone."""
    kinds = Counter(
        (layer.num_heads, layer.num_kv_heads, layer.head_dim, layer.v_head_dim) for layer in model.outline.layers
    )
    geometries = {kind: _attention_cache(*kind, precision) for kind in kinds}
    num_bytes = sum(geometries[kind].block_bytes * num_layers for kind, num_layers in kinds.items())
    return NetworkCache(next(iter(geometries.values())).block_size, num_bytes)


def _attention_cache(
    num_heads: int, num_kv_heads: int, head_dim: int, v_head_dim: int, precision: Precision
) -> CacheGeometry:
    net = OpenVINOLowering()
    heads = []
    for name, count, size in (
        ("q", num_heads, head_dim),
        ("k", num_kv_heads, head_dim),
        ("v", num_kv_heads, v_head_dim),
    ):
        shape = (1, count * size)
        heads.append(net.split_heads(net.embedding(Weight(name, FP32, shape, np.zeros(shape, np.float32))), count))
    query, key, value = heads
    attention = net.attention(0, query, key, value, Attention(1.0))
    network = net.network(net.select_rows(attention), num_heads * v_head_dim)
    return cache_geometry(compile_network(network.model, precision))


def lower(model: Decoder, source: WeightSource) -> Network:
    """Return a model's network in OpenVINO's operations.

    Raises:
        CheckpointError: tensors are missing, of another shape, or left over.
    """
    net = OpenVINOLowering()
    logits = model.write(net, source)
    source.require_all_used()
    return net.network(logits, model.vocab_size)


def write_network(folder: Path, network: Network, on_written: Callable[[int], None] = lambda _: None) -> None:
    """Write `network.xml` and `network.bin`; `on_written` is called with the bytes written so far."""
    target = folder / layout.WEIGHTS_FILE
    with ThreadPoolExecutor(1) as writer:
        done = writer.submit(ov.serialize, network.model, folder / layout.NETWORK_FILE, target)
        while not done.done():
            time.sleep(_POLL_SECONDS)
            on_written(target.stat().st_size if target.exists() else 0)
        done.result()
