"""Engines for CPUs of networks that were exported to OpenVINO.

Owns their precisions, memory plan and writing. The conversion beside it owns the network, and whatever holds for every
engine on CPUs is that of the compiler of families. Never reads the values of weights: they stay as they were exported.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import openvino as ov
from openvino import opset15 as ops

from trident_backend.engine.openvino import attention as openvino_attention
from trident_backend.engine.openvino.attention import LayerAttention
from trident_backend.engine.openvino.network import CacheGeometry, cache_geometry, compile_network
from trident_compiler.compiler import Progress
from trident_compiler.families.features import Feature
from trident_compiler.model_folder import ExportedModel
from trident_compiler.openvino.compiler import (
    RESIDENT_SHARE,
    NetworkCache,
    check_compute,
    computes_bf16,
    kv_precision,
    write_network,
)
from trident_compiler.openvino.exported.agreement import check_agreement
from trident_compiler.openvino.exported.network import convert_exported
from trident_compiler.openvino.precision_trials import Trials, choose, run_trials
from trident_compiler.openvino.probe import CompiledProbe
from trident_compiler.planning.machine import Machine
from trident_compiler.planning.memory_plan import LimitsRequest, MemoryPlan, MemoryRequirements, make_plan, size
from trident_compiler.weights import quantization
from trident_ensemble.contract.errors import BuildError, CheckpointError
from trident_ensemble.contract.manifest import Compiler, Precision, PrecisionChoice

#: What engines call a format that OpenVINO calls otherwise.
_FORMATS = {"f32": "fp32", "f16": "fp16", "i8": "int8", "u8": "int8", "i4": "int4", "u4": "int4", "f8e4m3": "fp8"}
_QUANTIZED_TYPES = ("i8", "u8", "i4", "u4")
#: Constants of these are copied in the computation's format when a network is compiled.
_EXPANDED_BITS = {"f8e4m3": 8, "f8e5m2": 8}
_COMPUTE_BITS = {"bf16": 16, "fp32": 32}

#: Tries two precisions on the network of a model.
Measure = Callable[[ExportedModel, Precision, Precision], Trials]


class ExportedCompiler:
    """Compiles exported networks for this machine's CPU; an `EngineCompiler`.

    Args:
        machine: the one that will serve.
        measure: tries precisions; `measure_exported` by default.
    """

    memory = "free"
    num_devices = 1
    #: Which networks cannot be converted is found by converting one.
    refusals: Mapping[Feature, str] = {}

    def __init__(self, machine: Machine, measure: Measure | None = None) -> None:
        self._machine = machine
        self._measure = measure or measure_exported
        self.compiler = Compiler("openvino", ov.__version__.partition("-")[0])

    def precision(self, opened: ExportedModel, compute: str | None, weight_format: str | None) -> Precision:
        """Return the number formats, as `EngineCompiler.precision` says.

        Compute is bf16 or fp32, by default the one that is measured to be faster on this machine. Weights are as they
        were exported.
        """
        stored = stored_format(opened)
        if weight_format not in {None, stored}:
            raise BuildError(
                f"--weights {weight_format}: those of an exported model stay as they are, which is {stored}; export it "
                "again in another format, or build from the original checkpoint"
            )
        check_compute(compute)
        if compute is not None:
            return _precision(opened, compute, PrecisionChoice("as asked"))
        if not computes_bf16():
            return _precision(opened, "fp32", PrecisionChoice("this CPU cannot compute in bfloat16"))
        exact, other = (_precision(opened, compute, PrecisionChoice()) for compute in ("fp32", "bf16"))
        both = _resident_bytes(opened, exact) + _resident_bytes(opened, other)
        if both > self._machine.free_bytes:
            reason = f"more exact; to try bf16 beside it takes {size(both)}, which is more than is free"
            return replace(exact, choice=PrecisionChoice(reason))
        trials = self._measure(opened, exact, other)
        chosen, choice = choose(exact.compute, other.compute, trials, self._machine.cpu)
        return replace(exact if chosen == exact.compute else other, choice=choice)

    def plan(self, opened: ExportedModel, precision: Precision, wanted: LimitsRequest) -> MemoryPlan:
        """Return the memory plan; the cache's geometry is that of compiled probes of the attention.

        Raises:
            CheckpointError: the network cannot be converted, or lacks the window that config.json has.
        """
        longest = wanted.max_seq_len or opened.model.max_position_embeddings
        layers = convert_exported(opened.folder, longest).layers
        window = opened.model.sliding_window
        if 0 < window < longest and not any(layer.sliding_window for layer in layers):
            raise CheckpointError(
                f"config.json: sliding_window = {window}: OpenVINO finds no window in the network, and would attend to "
                f"all tokens; up to {window} tokens are the same with and without: build with --max-seq-len {window}"
            )
        cache = _cache(layers, precision)
        needs = MemoryRequirements(
            weights_bytes=opened.model.files.num_bytes,
            resident_bytes=_resident_bytes(opened, precision),
            block_size=cache.block_size,
            block_bytes=cache.block_bytes,
            max_position_embeddings=opened.model.max_position_embeddings,
        )
        return make_plan(wanted, needs, self._machine.free_bytes)

    def describe_weights(self, opened: ExportedModel, precision: Precision) -> str:
        """Return the formats of the weights, for people."""
        del opened
        return f"{precision.weights} weights as they were exported"

    def write(
        self,
        folder: Path,
        opened: ExportedModel,
        *,
        precision: Precision,
        plan: MemoryPlan,
        progress: Progress,
    ) -> None:
        """Write the network, once it is known to compute what the exported one does."""
        del precision
        progress.phase("comparing the networks", 0)
        check_agreement(opened.folder, opened.model.vocab_size)
        progress.phase("writing the network", opened.model.files.num_bytes)
        write_network(folder, convert_exported(opened.folder, plan.max_seq_len).network, progress.reached)


def measure_exported(opened: ExportedModel, exact: Precision, other: Precision) -> Trials:
    """Try two precisions on all of an exported network, as its layers cannot be told apart."""
    longest = opened.model.max_position_embeddings
    one, two = (CompiledProbe(convert_exported(opened.folder, longest).network, each) for each in (exact, other))
    return run_trials(one, two)


def stored_format(opened: ExportedModel) -> str:
    """Return the format that most of the weights have, as engines call it."""
    values: Counter[str] = Counter()
    for constant in opened.model.files.constants:
        if len(constant.shape) > 1:
            values[_FORMATS.get(constant.element_type, constant.element_type)] += math.prod(constant.shape)
    return values.most_common(1)[0][0] if values else "fp32"


def _precision(opened: ExportedModel, compute: str, choice: PrecisionChoice) -> Precision:
    return Precision(compute, stored_format(opened), kv_precision(compute), choice, _activation_group(opened))


def _activation_group(opened: ExportedModel) -> int:
    """Return how many neighbouring activations may share a scale, as that of `formats` does by a family's roles.

    The last axis of a quantized matrix is a group where it is divided into groups, and a row otherwise.
    """
    quantized = [each for each in opened.model.files.constants if each.element_type in _QUANTIZED_TYPES]
    groups = (
        quantization.group_size(each.shape[-1]) for each in quantized if len(each.shape) > 1 and each.shape[-1] > 1
    )
    return min((group for group in groups if group is not None), default=0)


def _resident_bytes(opened: ExportedModel, precision: Precision) -> int:
    num_bytes = sum(
        each.num_bytes * _COMPUTE_BITS[precision.compute] // _EXPANDED_BITS[each.element_type]
        if each.element_type in _EXPANDED_BITS
        else each.num_bytes
        for each in opened.model.files.constants
    )
    return int(num_bytes * RESIDENT_SHARE)


def _cache(layers: tuple[LayerAttention, ...], precision: Precision) -> NetworkCache:
    """Return the cache of a network of these layers, read off compiled networks of attention alone."""
    kinds = Counter(_kind(layer) for layer in layers)
    geometries = {kind: _attention_cache(kind, precision) for kind in kinds}
    num_bytes = sum(geometries[kind].block_bytes * num_layers for kind, num_layers in kinds.items())
    return NetworkCache(next(iter(geometries.values())).block_size, num_bytes)


def _kind(layer: LayerAttention) -> LayerAttention:
    """Return a layer without what does not change its cache."""
    return replace(layer, scale=1.0, sliding_window=0, alibi_slopes=(), sinks=())


def _attention_cache(attention: LayerAttention, precision: Precision) -> CacheGeometry:
    widths = (
        attention.num_heads * attention.head_dim,
        attention.num_kv_heads * attention.head_dim,
        attention.num_kv_heads * attention.v_head_dim,
    )
    sources = [ops.parameter([-1, width], ov.Type.f32, f"source.{index}") for index, width in enumerate(widths)]
    query, key, value = (ops.relu(source) for source in sources)
    placeholder = openvino_attention.cut(0, query, key, value, attention)
    results = [ops.result(ops.relu(placeholder.output)), *placeholder.results]
    model = ov.Model(results, [*sources, placeholder.output], "trident")
    openvino_attention.describe(model, [placeholder])
    return cache_geometry(compile_network(model, precision))
