"""Engines for NVIDIA GPUs, by TensorRT or TensorRT-RTX: precisions, memory, and plan files.

Owns what the target's memory must hold and how plans come of a model; the lowering beside it owns the layers, and the
network compiler the builder. Never reads a checkpoint's files.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trident_compiler.compiler import Progress, SourceOf, WeightFormats, describe_matrices, weights_of
from trident_compiler.families.family import Decoder
from trident_compiler.families.outline import AttentionShape
from trident_compiler.model_folder import Checkpoint
from trident_compiler.planning.memory_plan import LimitsRequest, MemoryPlan
from trident_compiler.planning.slot_plan import SCRATCH_POSITIONS, make_slot_plan
from trident_compiler.tensorrt.builder import NetworkCompiler, ShapeRange
from trident_compiler.tensorrt.gpu import Capability
from trident_compiler.tensorrt.lowering import TensorRTLowering
from trident_compiler.tensorrt.memory import slot_needs
from trident_compiler.tensorrt.precision import tensorrt_precision
from trident_compiler.tensorrt.probe import PROBE_POSITIONS, kinds_of_attention, write_probe
from trident_compiler.tensorrt.profiles import Caches, profiles
from trident_compiler.tensorrt.refusals import REFUSALS
from trident_compiler.tensorrt.sampling_networks import sampling_networks
from trident_compiler.weights.formats import QUANTIZED
from trident_compiler.weights.sharding import ShardSpec
from trident_ensemble.contract import layout
from trident_ensemble.contract.errors import BuildError, CheckpointError
from trident_ensemble.contract.manifest import Compiler, Precision, sm_target

#: The first compute capability with TensorRT's collectives.
_FIRST_DIVIDED: Capability = (8, 0)
#: TensorRT's errors about attention, and not about memory, files or this program's mistakes, match this.
_ABOUT_ATTENTION = re.compile(r"attention|(?:dedicated|fused) kernel", re.IGNORECASE)
_PROGRESS_STEPS = 1000


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

    refusals = REFUSALS

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
        opened.model.outline.check_division(self.num_devices)
        needs = slot_needs(opened.model, self.formats(precision).matrix, self.num_devices)
        plan = make_slot_plan(wanted, needs, self._target.free_bytes)
        for layer in kinds_of_attention(opened.model.outline.layers):
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
        model, source_of = (
            opened.model.served_at(plan.max_seq_len),
            weights_of(opened, self.formats(precision), progress),
        )
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
        return Caches(
            tuple((layer.num_kv_heads // self.num_devices, layer.head_dim, layer.v_head_dim) for layer in layers),
            slot_len,
        )

    def _probe(self, layer: AttentionShape, precision: Precision) -> None:
        """Compile one layer's attention and throw it away.

        Raises:
            CheckpointError: there are no kernels for it.
            BuildError: it cannot be compiled for another reason.
        """
        network = self._compiler.network()
        net = self._lowering(network, precision, PROBE_POSITIONS)
        write_probe(net, layer, self.num_devices)
        caches = self._caches([layer], PROBE_POSITIONS)
        with tempfile.TemporaryDirectory() as folder:
            try:
                self._compiler.compile(network, profiles(caches, 2, PROBE_POSITIONS - 1), Path(folder) / "probe.plan")
            except BuildError as error:
                if not _ABOUT_ATTENTION.search(str(error)):
                    raise
                num_heads, num_kv_heads = layer.num_heads // self.num_devices, layer.num_kv_heads // self.num_devices
                each = f", {num_heads} and {num_kv_heads} on each of --tensor-parallel {self.num_devices}"
                raise CheckpointError(
                    f"config.json: head_dim = {layer.head_dim}, num_attention_heads = {layer.num_heads}, "
                    f"num_key_value_heads = {layer.num_kv_heads}{each if self.num_devices > 1 else ''}: "
                    f"{self.compiler.name} {self.compiler.version} has no attention of this kind in "
                    f"{precision.compute} for {self.compiler.target}: {error}"
                ) from None
