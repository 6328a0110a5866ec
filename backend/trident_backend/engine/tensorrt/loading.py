"""Loads an engine folder on one GPU, or one part of it on each of several.

Owns the order in which things are checked, loaded and freed, and whether they fit. Never runs a step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from trident_backend.engine.gpu.device import Device, DeviceMemoryError
from trident_backend.engine.protocol import Engine, EngineSpec
from trident_backend.engine.tensorrt import input_buffer, logits_buffer, sampling_plans
from trident_backend.engine.tensorrt.engine import TensorRTEngine
from trident_backend.engine.tensorrt.graphs import DecodeGraphs, captured_sizes
from trident_backend.engine.tensorrt.input_buffer import InputBuffer
from trident_backend.engine.tensorrt.logits_buffer import LogitsBuffer
from trident_backend.engine.tensorrt.network_layout import NetworkLayout, check_sampling, read_layout
from trident_backend.engine.tensorrt.network_runner import NetworkRunner
from trident_backend.engine.tensorrt.parallel import Join, load_leader
from trident_backend.engine.tensorrt.plan import Plan
from trident_backend.engine.tensorrt.runtime import check_target, import_runtime
from trident_backend.engine.tensorrt.sampling_plans import SamplingPlans
from trident_backend.engine.tensorrt.slot_pool import SlotPool
from trident_ensemble.contract import layout
from trident_ensemble.contract.errors import ArtifactError, PlanError
from trident_ensemble.contract.manifest import Manifest

_GIB = 2**30
_REMEDY = "free some of it, or build with a smaller --max-num-seqs, --max-seq-len or --max-num-tokens"


def load(folder: Path, manifest: Manifest, gpus: Sequence[int] = ()) -> Engine:
    """Load an engine, on as many GPUs as it is divided among.

    Args:
        folder: the engine's.
        manifest: its manifest.
        gpus: one for each part, as CUDA counts them; the first ones when empty.

    Raises:
        ArtifactError: TensorRT or a GPU is missing or another one, or a plan is not what the manifest says.
        PlanError: a GPU has too little free memory.
        EngineError: a GPU or TensorRT failed.
    """
    ordinals = gpus or range(manifest.tensor_parallel)
    if len(ordinals) != manifest.tensor_parallel:
        raise ArtifactError(f"tensor_parallel: the engine is for {manifest.tensor_parallel} GPUs, not {len(ordinals)}")
    if manifest.tensor_parallel == 1:
        return load_part(folder, manifest, 0, ordinals[0], None)
    return load_leader(folder, manifest, ordinals, load_part)


def load_part(folder: Path, manifest: Manifest, rank: int, ordinal: int, join: Join | None) -> TensorRTEngine:
    """Load one device's plan, allocate its KV slots and capture its graphs.

    Args:
        folder: the engine's.
        manifest: its manifest.
        rank: which part of the network.
        ordinal: the GPU, as CUDA counts them.
        join: gives the communicator of a network that is divided; called once, before anything runs.

    Raises:
        ArtifactError: TensorRT or the GPU is missing or another one, or the plan is not what the manifest says.
        PlanError: the GPU has too little free memory.
        EngineError: the GPU or TensorRT failed.
    """
    try:
        return _load_part(folder, manifest, rank, ordinal, join)
    except DeviceMemoryError as error:  # beside what is known beforehand, contexts, graphs and NCCL take some
        raise PlanError(f"{error}; {_REMEDY}") from None


def _load_part(folder: Path, manifest: Manifest, rank: int, ordinal: int, join: Join | None) -> TensorRTEngine:
    module = import_runtime(manifest.compiler)
    path = folder / layout.plan_file(rank, manifest.tensor_parallel)
    with ExitStack() as stack:
        device = Device(ordinal)
        stack.callback(device.close)
        check_target(manifest.compiler, device.capability, ordinal)
        needs = _needs(manifest)
        _check_memory(device, {"weights": path.stat().st_size if path.is_file() else 0, **needs})
        plan = Plan(path, device, module)
        stack.callback(plan.close)
        network = read_layout(plan, manifest)
        sampling = sampling_plans.load(folder / layout.SAMPLING_FOLDER, device, module)
        stack.callback(sampling.close)
        check_sampling(sampling, manifest)
        _check_memory(device, {**needs, "work": device.work_bytes})
        if join is not None:
            plan.communicator = join(device)
        engine = _assemble(device, plan=plan, network=network, sampling=sampling, manifest=manifest, stack=stack)
        engine.resources = stack.pop_all()
    return engine


def _assemble(
    device: Device,
    *,
    plan: Plan,
    network: NetworkLayout,
    sampling: SamplingPlans,
    manifest: Manifest,
    stack: ExitStack,
) -> TensorRTEngine:
    """Allocate what steps need, run each kind of call once, and return the engine."""
    limits, num_slots = manifest.limits, manifest.kv_cache.num_blocks
    slots = SlotPool(device, network.caches, num_slots)
    stack.callback(slots.close)
    inputs = InputBuffer(device, num_slots, limits.max_num_tokens, limits.max_num_seqs)
    stack.callback(inputs.close)
    logits = LogitsBuffer(device, max(_max_rows(manifest), sampling.max_rows), network.vocab_size)
    stack.callback(logits.close)
    runner = NetworkRunner(plan, network, slots, inputs, logits)
    runner.warm_up(num_slots)
    graphs = DecodeGraphs(device, plan, captured_sizes(num_slots), runner.bind_decode)
    stack.callback(graphs.close)
    device.synchronize()
    return TensorRTEngine(device, runner, graphs, sampling, EngineSpec.from_manifest(manifest))


def _max_rows(manifest: Manifest) -> int:
    return max(manifest.limits.max_num_tokens, manifest.kv_cache.num_blocks)


def _needs(manifest: Manifest) -> dict[str, int]:
    """Return the bytes on the device that the manifest alone decides."""
    cache, limits = manifest.kv_cache, manifest.limits
    num_ints = input_buffer.num_ints_of(cache.num_blocks, limits.max_num_tokens, limits.max_num_seqs)
    return {
        "KV slots": cache.num_blocks * cache.block_bytes,
        "logits": logits_buffer.num_bytes_of(_max_rows(manifest), manifest.architecture.vocab_size),
        "inputs": num_ints * 4,
    }


def _check_memory(device: Device, needs: Mapping[str, int]) -> None:
    free, needed = device.free_bytes(), sum(needs.values())
    if needed > free:
        parts = ", ".join(f"{name} {size / _GIB:.2f}" for name, size in needs.items())
        raise PlanError(
            f"GPU {device.ordinal} has {free / _GIB:.2f} GiB of free memory, the engine needs {needed / _GIB:.2f} GiB "
            f"({parts}); {_REMEDY}"
        )
