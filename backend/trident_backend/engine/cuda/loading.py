"""Loads an engine folder of our own kernels on one GPU.

Owns the order in which things are checked, loaded and freed, and whether they fit. Never runs a request's step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from trident_backend.engine.cuda.engine import CudaEngine
from trident_backend.engine.cuda.graphs import StepGraphs
from trident_backend.engine.cuda.manifest_check import check_manifest, check_target
from trident_backend.engine.cuda.program_checks import check_program
from trident_backend.engine.cuda.program_file import read_program
from trident_backend.engine.cuda.runner import ProgramRunner
from trident_backend.engine.cuda.sampling_kernels import SamplingKernels
from trident_backend.engine.cuda.step_memory import StepMemory, sizes_of
from trident_backend.engine.cuda.trial import Trial
from trident_backend.engine.cuda.trial_steps import TrialSteps
from trident_backend.engine.cuda.weight_memory import WeightMemory, num_bytes_of
from trident_backend.engine.gpu.block_pool import BlockPool, block_bytes_of
from trident_backend.engine.gpu.device import Device, DeviceMemoryError
from trident_backend.engine.gpu.freeing import freed_on_failure
from trident_backend.engine.gpu.kernels import KernelLibrary
from trident_backend.engine.gpu.program import Program, SamplingLimits
from trident_backend.engine.gpu.step_inputs import StepInputBuffer
from trident_backend.engine.protocol import EngineSpec
from trident_backend.engine.warm_up import warm_up
from trident_ensemble.contract import layout
from trident_ensemble.contract.errors import ArtifactError, PlanError
from trident_ensemble.contract.manifest import Manifest

_GIB = 2**30
_REMEDY = "free some of it, or build with a smaller --max-num-seqs, --max-seq-len or --max-num-tokens"
#: Programs of a kernel that a multiprocessor runs at a time.
_PROGRAMS_EACH = 4


def load(folder: Path, manifest: Manifest, gpus: Sequence[int] = ()) -> CudaEngine:
    """Load an engine on one GPU.

    Args:
        folder: the engine's.
        manifest: its manifest.
        gpus: the one to run on, as CUDA counts them; the first when empty.

    Raises:
        ArtifactError: CUDA's bindings or the GPU are missing, the GPU is another one, or a file is not what the
            manifest says.
        PlanError: the GPU has too little free memory.
        EngineError: the GPU failed.
    """
    ordinals = gpus or (0,)
    if len(ordinals) != 1:
        raise ArtifactError(f"tensor_parallel: the engine is for 1 GPU, not {len(ordinals)}")
    program = read_program(folder)
    check_program(program)
    check_manifest(manifest, program)
    try:
        engine = _load(folder, manifest, program, ordinals[0])
    except DeviceMemoryError as error:  # beside what is known beforehand, kernels and graphs take some
        raise PlanError(f"{error}; {_REMEDY}") from None
    return engine


def _load(folder: Path, manifest: Manifest, program: Program, ordinal: int) -> CudaEngine:
    with freed_on_failure() as stack:
        device = Device(ordinal)
        stack.callback(device.close)
        check_target(manifest, device.capability, ordinal)
        kernels = KernelLibrary(device, folder, program.kernels)
        stack.callback(kernels.close)
        engine = _assemble(device, kernels, program, EngineSpec.from_manifest(manifest), folder=folder, stack=stack)
        warm_up(engine)
        engine.resources = stack
    return engine


def _assemble(
    device: Device, kernels: KernelLibrary, program: Program, spec: EngineSpec, *, folder: Path, stack: ExitStack
) -> CudaEngine:
    """Allocate what steps need, upload the weights, capture the graphs, and return the engine."""
    inputs = StepInputBuffer(device, program, spec, device.num_multiprocessors * _PROGRAMS_EACH)
    stack.callback(inputs.close)
    num_kinds = len(program.attention_kinds)
    bounds = [inputs.bounds(kind, spec.max_num_tokens) for kind in range(num_kinds)]
    max_rows = max(spec.max_num_tokens, program.sampling.max_rows)
    path = folder / layout.WEIGHTS_FILE
    needs = {
        "weights": num_bytes_of(path, program.weights),
        "KV blocks": spec.num_blocks * block_bytes_of(program, spec.block_size),
        **sizes_of(program, bounds, max_rows),
        "sampling": _sampling_bytes(program.sampling, spec.vocab_size),
    }
    _check_memory(device, needs)
    pool = BlockPool(device, program, spec)
    stack.callback(pool.close)
    memory = StepMemory(device, program, bounds, max_rows)
    stack.callback(memory.close)
    sampling = SamplingKernels(kernels, program, device)
    stack.callback(sampling.close)
    weights = WeightMemory(device, path, program.weights)
    stack.callback(weights.close)
    weights.upload()
    runner = ProgramRunner(program, kernels, inputs=inputs, pool=pool, weights=weights, memory=memory)
    few_len = min(kind.few_len for kind in program.attention_kinds)
    graphs = StepGraphs(
        device,
        runner=runner,
        inputs=inputs,
        num_kinds=num_kinds,
        trial=Trial(device, program, spec, inputs=inputs, pool=pool, memory=memory),
        steps=TrialSteps(spec, few_len),
    )
    stack.callback(graphs.close)
    return CudaEngine(
        device,
        spec,
        kernels=kernels,
        pool=pool,
        inputs=inputs,
        graphs=graphs,
        sampling=sampling,
        logits=memory.logits,
    )


def _sampling_bytes(limits: SamplingLimits, vocab_size: int) -> int:
    """Return the bytes of the rows that sampling changes, and of the table of penalties."""
    return (limits.max_chosen + limits.num_table_rows) * vocab_size * 4


def _check_memory(device: Device, needs: Mapping[str, int]) -> None:
    free, needed = device.free_bytes(), sum(needs.values())
    if needed > free:
        parts = ", ".join(f"{name} {size / _GIB:.2f}" for name, size in needs.items() if size)
        raise PlanError(
            f"GPU {device.ordinal} has {free / _GIB:.2f} GiB of free memory, the engine needs {needed / _GIB:.2f} GiB "
            f"({parts}); {_REMEDY}"
        )
