"""Engines for NVIDIA GPUs, by TensorRT or TensorRT-RTX: precisions, memory, and a plan file of one network.

Owns what the target's memory must hold and how a folder comes of a checkpoint; the lowering beside it owns the layers,
and the network compiler the builder. Never reads a checkpoint's files.
"""

from __future__ import annotations

import math
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trident_compiler.checkpoint.checkpoint import Checkpoint
from trident_compiler.checkpoint.model_config import ModelConfig
from trident_compiler.compiler import SourceOf, WeightFormats
from trident_compiler.families.llama import llama
from trident_compiler.planning.memory_plan import LimitsRequest, MemoryPlan
from trident_compiler.planning.slot_plan import SCRATCH_POSITIONS, SlotNeeds, make_slot_plan
from trident_compiler.progress import Progress
from trident_compiler.tensorrt.builder import NetworkCompiler, ShapeRange
from trident_compiler.tensorrt.gpu import Capability, target
from trident_compiler.tensorrt.lowering import TensorRTLowering
from trident_compiler.tensorrt.precision import tensorrt_precision
from trident_compiler.tensorrt.profiles import Caches, profiles
from trident_compiler.tensorrt.sampling_networks import MAX_ROWS as SAMPLED_ROWS
from trident_compiler.tensorrt.sampling_networks import sampling_networks
from trident_compiler.weights.formats import FP32, QUANTIZED, estimated_bytes
from trident_compiler.weights.sharding import ShardSpec, check_division
from trident_compiler.weights.weights import Weight
from trident_ensemble.contract import layout
from trident_ensemble.contract.errors import CheckpointError, PlanError
from trident_ensemble.contract.manifest import Compiler, Precision

#: The first compute capability with TensorRT's sums over devices.
_FIRST_DIVIDED: Capability = (8, 0)
#: How TensorRT's words begin to be about attention, and not about memory, files or this program's mistakes.
_ABOUT_ATTENTION = re.compile(r"attention|(?:dedicated|fused) kernel", re.IGNORECASE)
#: CUDA's context, kernels, and work space of products and of attention.
_FIXED_BYTES = 1 << 29
#: Bytes; every address that is bound to an input must be a multiple, and so each slot of a layer's keys or values.
_ALIGNMENT = 256
_PROGRESS_STEPS = 1000
#: A probe's slot, which says as much about a target's kernels as a long one.
_PROBE_POSITIONS, _PROBE_WINDOW = 257, 16


@dataclass(frozen=True)
class TensorRTTarget:
    """What is built for.

    Args:
        name: of the compiler, `tensorrt` or `tensorrt_rtx`.
        capability: of the GPU.
        ordinal: which GPU of this machine it is; None when it is elsewhere.
        free_bytes: its memory to plan with.
        memory: which memory that is, for people.
        num_devices: such GPUs among which the network is divided.
        by_lengths: see `TensorRTLowering`.
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
        PlanError: the module cannot build for it, or such GPUs cannot share a network.
    """

    def __init__(self, trt: Any, built_for: TensorRTTarget) -> None:
        if built_for.num_devices > 1 and built_for.capability < _FIRST_DIVIDED:
            raise PlanError(
                f"--tensor-parallel {built_for.num_devices}: {target(built_for.capability)} cannot share a network, "
                "which begins with sm_80; build for one GPU"
            )
        self._trt = trt
        self._target = built_for
        self._compiler = NetworkCompiler(trt, built_for.capability, built_for.ordinal)
        self.compiler = Compiler(built_for.name, str(trt.__version__), target(built_for.capability))
        self.memory = built_for.memory
        self.num_devices = built_for.num_devices

    def precision(self, checkpoint: Checkpoint, compute: str | None, weight_format: str | None) -> Precision:
        """See `EngineCompiler` and `tensorrt_precision`."""
        return tensorrt_precision(checkpoint, compute, weight_format, self._target.capability)

    def plan(self, checkpoint: Checkpoint, precision: Precision, wanted: LimitsRequest) -> MemoryPlan:
        """See `EngineCompiler`; TensorRT is asked to compile the checkpoint's attention."""
        config = checkpoint.config
        matrix = self.formats(precision).matrix
        tied, num_devices = config.tie_word_embeddings, self.num_devices
        check_division(config, num_devices)
        row_bytes = config.num_kv_heads // num_devices * config.head_dim * 2
        needs = SlotNeeds(
            weights_bytes=estimated_bytes(checkpoint.tensors, matrix, tied=tied, uniform=True, num_devices=num_devices),
            fixed_bytes=_FIXED_BYTES + _sampling_bytes(config),
            step_token_bytes=_step_token_bytes(config),
            position_bytes=2 * config.num_layers * row_bytes,
            multiple=_ALIGNMENT // math.gcd(_ALIGNMENT, row_bytes),
            max_position_embeddings=config.max_position_embeddings,
        )
        plan = make_slot_plan(wanted, needs, self._target.free_bytes)
        self._probe(config, precision)
        return plan

    def formats(self, precision: Precision) -> WeightFormats:
        """See `EngineCompiler`."""
        matrix = precision.weights if precision.weights in QUANTIZED else precision.compute
        return WeightFormats(matrix, precision.compute, uniform=True)

    def write(
        self,
        folder: Path,
        config: ModelConfig,
        source_of: SourceOf,
        *,
        precision: Precision,
        plan: MemoryPlan,
        progress: Progress,
    ) -> None:
        """See `EngineCompiler`."""
        self.write_network(folder, config, source_of, precision=precision, plan=plan, progress=progress)
        self.write_sampling(folder / layout.SAMPLING_FOLDER, config.vocab_size, plan.max_num_tokens, progress)

    def write_network(
        self,
        folder: Path,
        config: ModelConfig,
        source_of: SourceOf,
        *,
        precision: Precision,
        plan: MemoryPlan,
        progress: Progress,
    ) -> None:
        """The model alone; devices one after another, so that one's share of the weights is held at a time."""
        caches = Caches(
            config.num_layers,
            config.num_kv_heads // self.num_devices,
            plan.block_size + SCRATCH_POSITIONS,
            config.head_dim,
        )
        max_chunk = min(plan.max_num_tokens, plan.block_size)
        for rank in range(self.num_devices):
            source = source_of(ShardSpec(rank, self.num_devices))
            network = self._compiler.network()
            lowering = self._lowering(network, precision, caches.slot_len)
            lowering.finish(llama(lowering, config, source))
            source.require_all_used()
            progress.phase("compiling the network", _PROGRESS_STEPS, in_bytes=False)
            self._compiler.compile(
                network,
                profiles(caches, plan.max_num_seqs, max_chunk),
                folder / layout.plan_file(rank, self.num_devices),
                lambda share: progress.reached(int(share * _PROGRESS_STEPS)),
            )

    def write_sampling(self, folder: Path, vocab_size: int, max_rows: int, progress: Progress) -> None:
        """A plan for each of the operations on logits, in a new folder."""
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

    def _probe(self, config: ModelConfig, precision: Precision) -> None:
        """Compile one layer's attention and throw it away.

        Raises:
            CheckpointError: there are no kernels for it.
            PlanError: it cannot be compiled for another reason.
        """
        num_heads, num_kv_heads = config.num_heads // self.num_devices, config.num_kv_heads // self.num_devices
        network = self._compiler.network()
        net = self._lowering(network, precision, _PROBE_POSITIONS)
        heads = []
        for name, count in (("q", num_heads), ("k", num_kv_heads), ("v", num_kv_heads)):
            shape = (1, count * config.head_dim)
            table = Weight(name, FP32, shape, np.zeros(shape, np.float32))
            heads.append(net.split_heads(net.embedding(table), count))
        window = _PROBE_WINDOW if any(config.sliding_windows) else None
        net.finish(net.select_rows(net.attention(0, *heads, scale=1.0, sliding_window=window)))
        caches = Caches(1, num_kv_heads, _PROBE_POSITIONS, config.head_dim)
        with tempfile.TemporaryDirectory() as folder:
            try:
                self._compiler.compile(network, profiles(caches, 2, _PROBE_POSITIONS - 1), Path(folder) / "probe.plan")
            except PlanError as error:
                if not _ABOUT_ATTENTION.search(str(error)):
                    raise
                each = f", {num_heads} and {num_kv_heads} on each of --tensor-parallel {self.num_devices}"
                raise CheckpointError(
                    f"config.json: head_dim = {config.head_dim}, num_attention_heads = {config.num_heads}, "
                    f"num_key_value_heads = {config.num_kv_heads}{each if self.num_devices > 1 else ''}: "
                    f"{self.compiler.name} {self.compiler.version} has no attention of this kind in "
                    f"{precision.compute} for {self.compiler.target}: {error}"
                ) from None


def _step_token_bytes(config: ModelConfig) -> int:
    """Of one token of a step: its row of logits in float32, and in 16 bits before, and the widest activations of a
    layer, of which a few live at a time, one of them in float32."""
    attention = (config.num_heads + 2 * config.num_kv_heads) * config.head_dim
    return 6 * config.vocab_size + 2 * (8 * config.hidden_size + 3 * config.intermediate_size + 2 * attention)


def _sampling_bytes(config: ModelConfig) -> int:
    """Of sampling's work, a few rows of float32 for each row that it takes at a time, and of its table of penalties."""
    return 20 * SAMPLED_ROWS * config.vocab_size
