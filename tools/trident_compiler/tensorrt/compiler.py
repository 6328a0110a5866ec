"""Engines for NVIDIA GPUs, by TensorRT or TensorRT-RTX: precisions, memory, and plan files.

Owns what the target's memory must hold and how plans come of a model; the lowering beside it owns the layers, and the
network compiler the builder. Never reads a checkpoint's files.
"""

from __future__ import annotations

import math
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from trident_backend.engine.tensorrt.names import ALIGNMENT
from trident_compiler.compiler import Progress, SourceOf, WeightFormats, describe_matrices, weights_of
from trident_compiler.families.outline import AttentionShape
from trident_compiler.families.registry import Decoder
from trident_compiler.model_folder import Checkpoint
from trident_compiler.planning.memory_plan import LimitsRequest, MemoryPlan
from trident_compiler.planning.slot_plan import SCRATCH_POSITIONS, SlotNeeds, make_slot_plan
from trident_compiler.tensorrt.builder import NetworkCompiler, ShapeRange
from trident_compiler.tensorrt.gpu import Capability
from trident_compiler.tensorrt.lowering import TensorRTLowering
from trident_compiler.tensorrt.precision import tensorrt_precision
from trident_compiler.tensorrt.profiles import Caches, profiles
from trident_compiler.tensorrt.sampling_networks import MAX_ROWS as SAMPLED_ROWS
from trident_compiler.tensorrt.sampling_networks import sampling_networks
from trident_compiler.weights.formats import FP32, QUANTIZED, estimated_bytes
from trident_compiler.weights.sharding import ShardSpec
from trident_compiler.weights.weights import Weight
from trident_ensemble.contract import layout
from trident_ensemble.contract.errors import BuildError, CheckpointError
from trident_ensemble.contract.manifest import Compiler, Precision, sm_target

#: The first compute capability with TensorRT's collectives.
_FIRST_DIVIDED: Capability = (8, 0)
#: TensorRT's errors about attention, and not about memory, files or this program's mistakes, match this.
_ABOUT_ATTENTION = re.compile(r"attention|(?:dedicated|fused) kernel", re.IGNORECASE)
#: CUDA's context, kernels, and work space of matrix multiplication and of attention.
_FIXED_BYTES = 1 << 29
_PROGRESS_STEPS = 1000
#: A probe's slot, which says as much about a target's kernels as a long one.
_PROBE_POSITIONS, _PROBE_WINDOW = 257, 16


@dataclass(frozen=True)
class TensorRTTarget:
    """The target of a build.

    Args:
        name: of the compiler, `tensorrt` or `tensorrt_rtx`.
        capability: of the GPU.
        ordinal: which GPU of this machine it is; None when it is elsewhere.
        free_bytes: its memory to plan with.
        memory: which memory that is, for people.
        num_devices: such GPUs among which the network is divided.
        by_lengths: as `TensorRTLowering` has it.
    """

    name: str
    capability: Capability
    ordinal: int | None
    free_bytes: int
    memory: str
    num_devices: int = 1
    by_lengths: bool = False


class TensorRTCompiler:
    """Compiles for one GPU; an `EngineCompiler`.

    Args:
        trt: the module, `tensorrt` or `tensorrt_rtx`.
        built_for: the target.

    Raises:
        BuildError: the module cannot build for it, or such GPUs cannot share a network.
    """

    def __init__(self, trt: Any, built_for: TensorRTTarget) -> None:
        if built_for.num_devices > 1 and built_for.capability < _FIRST_DIVIDED:
            raise BuildError(
                f"--tensor-parallel {built_for.num_devices}: {sm_target(built_for.capability)} cannot share a network, "
                "which begins with sm_80; build for one GPU"
            )
        self._trt = trt
        self._target = built_for
        self._compiler = NetworkCompiler(trt, built_for.capability, built_for.ordinal)
        self.compiler = Compiler(built_for.name, str(trt.__version__), sm_target(built_for.capability))
        self.memory = built_for.memory
        self.num_devices = built_for.num_devices

    def precision(self, opened: Checkpoint, compute: str | None, weight_format: str | None) -> Precision:
        """Return the number formats, as `tensorrt_precision` resolves them."""
        return tensorrt_precision(opened, compute, weight_format, self._target.capability)

    def plan(self, opened: Checkpoint, precision: Precision, wanted: LimitsRequest) -> MemoryPlan:
        """Return the memory plan, after TensorRT has compiled the checkpoint's attention as a trial."""
        outline = opened.model.outline
        outline.check_division(self.num_devices)
        # One token's keys, or its values, in one layer's cache of 16 bits.
        row_bytes = [layer.num_kv_heads // self.num_devices * layer.head_dim * 2 for layer in outline.layers]
        needs = SlotNeeds(
            weights_bytes=estimated_bytes(
                outline.weights, self.formats(precision).matrix, uniform=True, num_devices=self.num_devices
            ),
            fixed_bytes=_FIXED_BYTES + _sampling_bytes(opened.model.vocab_size),
            step_token_bytes=_step_token_bytes(opened.model),
            position_bytes=2 * sum(row_bytes),
            multiple=math.lcm(*(ALIGNMENT // math.gcd(ALIGNMENT, num_bytes) for num_bytes in row_bytes)),
            max_position_embeddings=opened.model.max_position_embeddings,
        )
        plan = make_slot_plan(wanted, needs, self._target.free_bytes)
        for layer in _kinds(outline.layers):
            self._probe(layer, precision)
        return plan

    def describe_weights(self, opened: Checkpoint, precision: Precision) -> str:
        """Return the formats of the weights, for people."""
        return describe_matrices(opened, precision, self.formats(precision).matrix, self.num_devices)

    def formats(self, precision: Precision) -> WeightFormats:
        """Return how the weights come, as `WeightFormats`."""
        matrix = precision.weights if precision.weights in QUANTIZED else precision.compute
        return WeightFormats(matrix, precision.compute, uniform=True)

    def write(
        self,
        folder: Path,
        opened: Checkpoint,
        *,
        precision: Precision,
        plan: MemoryPlan,
        progress: Progress,
    ) -> None:
        """Write the model's plans, and those of sampling."""
        model, source_of = opened.model, weights_of(opened, self.formats(precision), progress)
        self.write_network(folder, model, source_of, precision=precision, plan=plan, progress=progress)
        self.write_sampling(folder / layout.SAMPLING_FOLDER, model.vocab_size, plan.max_num_tokens, progress)

    def write_network(
        self,
        folder: Path,
        model: Decoder,
        source_of: SourceOf,
        *,
        precision: Precision,
        plan: MemoryPlan,
        progress: Progress,
    ) -> None:
        """Write the model's plans, one device after another, so that one share of the weights is held at a time."""
        caches = self._caches(model.outline.layers, plan.block_size + SCRATCH_POSITIONS)
        max_chunk = min(plan.max_num_tokens, plan.block_size)
        for rank in range(self.num_devices):
            source = source_of(ShardSpec(rank, self.num_devices))
            network = self._compiler.network()
            lowering = self._lowering(network, precision, caches.slot_len)
            lowering.finish(model.write(lowering, source))
            source.require_all_used()
            progress.phase("compiling the network", _PROGRESS_STEPS, in_bytes=False)
            self._compiler.compile(
                network,
                profiles(caches, plan.max_num_seqs, max_chunk),
                folder / layout.plan_file(rank, self.num_devices),
                lambda share: progress.reached(int(share * _PROGRESS_STEPS)),
            )

    def write_sampling(self, folder: Path, vocab_size: int, max_rows: int, progress: Progress) -> None:
        """Write a plan for each of the operations on logits into a new folder."""
        folder.mkdir()
        networks = sampling_networks(vocab_size, max_rows)
        progress.phase("compiling sampling", len(networks), in_bytes=False)
        for num_done, small in enumerate(networks, start=1):
            network = self._compiler.network()
            kept = small.write(self._trt, network)
            profile = {name: ShapeRange(*shapes) for name, shapes in small.profile.items()}
            self._compiler.compile(network, [profile], folder / f"{small.name}.plan")
            del kept  # what the network's constants read
            progress.reached(num_done)

    def _lowering(self, network: Any, precision: Precision, slot_len: int) -> TensorRTLowering:
        return TensorRTLowering(
            self._trt, network, precision.compute, slot_len, self.num_devices, by_lengths=self._target.by_lengths
        )

    def _caches(self, layers: Sequence[AttentionShape], slot_len: int) -> Caches:
        return Caches(tuple((layer.num_kv_heads // self.num_devices, layer.head_dim) for layer in layers), slot_len)

    def _probe(self, layer: AttentionShape, precision: Precision) -> None:
        """Compile one layer's attention and throw it away.

        Raises:
            CheckpointError: there are no kernels for it.
            BuildError: it cannot be compiled for another reason.
        """
        num_heads, num_kv_heads = layer.num_heads // self.num_devices, layer.num_kv_heads // self.num_devices
        network = self._compiler.network()
        net = self._lowering(network, precision, _PROBE_POSITIONS)
        heads = []
        for name, count in (("q", num_heads), ("k", num_kv_heads), ("v", num_kv_heads)):
            shape = (1, count * layer.head_dim)
            table = Weight(name, FP32, shape, np.zeros(shape, np.float32))
            heads.append(net.split_heads(net.embedding(table), count))
        net.finish(net.select_rows(net.attention(0, *heads, scale=1.0, sliding_window=layer.sliding_window)))
        caches = self._caches([layer], _PROBE_POSITIONS)
        with tempfile.TemporaryDirectory() as folder:
            try:
                self._compiler.compile(network, profiles(caches, 2, _PROBE_POSITIONS - 1), Path(folder) / "probe.plan")
            except BuildError as error:
                if not _ABOUT_ATTENTION.search(str(error)):
                    raise
                each = f", {num_heads} and {num_kv_heads} on each of --tensor-parallel {self.num_devices}"
                raise CheckpointError(
                    f"config.json: head_dim = {layer.head_dim}, num_attention_heads = {layer.num_heads}, "
                    f"num_key_value_heads = {layer.num_kv_heads}{each if self.num_devices > 1 else ''}: "
                    f"{self.compiler.name} {self.compiler.version} has no attention of this kind in "
                    f"{precision.compute} for {self.compiler.target}: {error}"
                ) from None


def _kinds(layers: Sequence[AttentionShape]) -> list[AttentionShape]:
    """Return one layer of each kind of attention, with a window that fits a probe if any of the kind has one."""
    kinds: dict[AttentionShape, bool] = {}
    for layer in layers:
        kind = replace(layer, sliding_window=None)
        kinds[kind] = kinds.get(kind, False) or layer.sliding_window is not None
    return [replace(kind, sliding_window=_PROBE_WINDOW if has_window else None) for kind, has_window in kinds.items()]


def _step_token_bytes(model: Decoder) -> int:
    """Return what one token of a step takes: its row of logits in float32, and in 16 bits before, and as many
    activations of 16 bits as the largest layer computes, though few of them live at a time."""
    return 6 * model.vocab_size + 2 * model.outline.layer_features


def _sampling_bytes(vocab_size: int) -> int:
    """Return what sampling takes: a few rows of float32 for each row of one run, and its table of penalties."""
    return 20 * SAMPLED_ROWS * vocab_size
