"""Engines for NVIDIA GPUs made of kernels of our own: precisions, memory, and the files of one.

Owns the order in which an engine is written; the modules beside it own the program, its kernels and its weights. Never
reads a checkpoint's files.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from trident_backend.engine.cuda.program_file import PROGRAM_FILE, write_program
from trident_backend.engine.gpu.program import Kernel
from trident_compiler.compiler import Progress, WeightFormats, describe_matrices, weights_of
from trident_compiler.cuda.kernel_spec import KernelSpec
from trident_compiler.cuda.memory import GPU_MEMORY, memory_needs
from trident_compiler.cuda.network import Network, write_network
from trident_compiler.cuda.operations import Target
from trident_compiler.cuda.planned_weights import PlannedWeights
from trident_compiler.cuda.precision import cache_dtype, cuda_precision
from trident_compiler.cuda.refusals import REFUSALS
from trident_compiler.cuda.targets import Capability, num_programs
from trident_compiler.cuda.weights_file import CountedWeights, WeightsFile
from trident_compiler.model_folder import Checkpoint
from trident_compiler.planning.memory_plan import (
    DEFAULT_MAX_SEQ_LEN,
    LimitsRequest,
    MemoryPlan,
    make_plan,
    step_limits,
)
from trident_compiler.weights.formats import QUANTIZED
from trident_compiler.weights.sharding import WHOLE
from trident_ensemble.contract import layout
from trident_ensemble.contract.errors import BuildError
from trident_ensemble.contract.manifest import Compiler, Precision, sm_target

#: Tokens of a block of the KV cache.
BLOCK_SIZE = 32
#: Compiles kernels for a GPU into an engine's folder; `kernel_compiler.compile_kernels` is one.
CompileKernels = Callable[[Mapping[str, KernelSpec], Capability, Path, Progress], dict[str, Kernel]]


@dataclass(frozen=True)
class CudaTarget:
    """The target of a build.

    Args:
        capability: of the GPU.
        free_bytes: its memory to plan with.
        memory: which memory that is, for people.
        fp8_cache: the KV cache is in fp8, and not as the computation.
    """

    capability: Capability
    free_bytes: int
    memory: str
    fp8_cache: bool = False


class CudaCompiler:
    """Compiles for one GPU, on any machine; an `EngineCompiler`.

    Args:
        built_for: the target.
        version: of what compiles the kernels.
        compile_kernels: compiles them.
    """

    refusals = REFUSALS
    num_devices = 1

    def __init__(self, built_for: CudaTarget, version: str, compile_kernels: CompileKernels) -> None:
        self._target = built_for
        self._compile_kernels = compile_kernels
        self.compiler = Compiler("cuda", version, sm_target(built_for.capability))
        self.memory = built_for.memory

    def precision(self, opened: Checkpoint, compute: str | None, weight_format: str | None) -> Precision:
        """Return the number formats, as `cuda_precision` resolves them."""
        target = self._target
        return cuda_precision(opened, compute, weight_format, target.capability, fp8_cache=target.fp8_cache)

    def plan(self, opened: Checkpoint, precision: Precision, wanted: LimitsRequest) -> MemoryPlan:
        """Return the memory plan, for which the whole program is written without weights."""
        longest = opened.model.max_position_embeddings
        _, max_num_tokens = step_limits(wanted, longest, GPU_MEMORY.max_num_tokens)
        max_seq_len = wanted.max_seq_len or min(longest, DEFAULT_MAX_SEQ_LEN)
        needs = memory_needs(
            self._planned(opened, precision, max_num_tokens, max_seq_len).program,
            block_size=BLOCK_SIZE,
            max_num_tokens=max_num_tokens,
            num_programs=num_programs(self._target.capability),
            longest=longest,
        )
        return make_plan(wanted, needs, self._target.free_bytes, GPU_MEMORY)

    def describe_weights(self, opened: Checkpoint, precision: Precision) -> str:
        """Return the formats of the weights, for people."""
        return describe_matrices(opened, precision, self.formats(precision).matrix)

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
        """Compile the kernels, then write the weights as the family asks for them, one at a time, and the program last.

        What may fail soon comes before what takes long: kernels follow from the limits and the formats of weights.
        """
        planned = self._planned(opened, precision, plan.max_num_tokens, plan.max_seq_len)
        kernels = self._compile_kernels(planned.specs, self._target.capability, folder, progress)
        source = weights_of(opened, self.formats(precision), progress)(WHOLE)
        with WeightsFile(folder / layout.WEIGHTS_FILE) as file:
            network = write_network(
                opened.model.served_at(plan.max_seq_len),
                source,
                file,
                Target(precision.compute, self._target.capability, plan.max_num_tokens),
                max_seq_len=plan.max_seq_len,
                block_size=plan.block_size,
                cache_dtype=cache_dtype(precision),
                release=source.release,
            )
        source.require_all_used()
        assert network.specs == planned.specs, "the kernels that were compiled are those of the program"
        try:
            write_program(folder, replace(network.program, kernels=kernels))
        except OSError as error:
            raise BuildError(f"{folder / PROGRAM_FILE} cannot be written: {error.strerror or error}") from None

    def _planned(self, opened: Checkpoint, precision: Precision, max_num_tokens: int, max_seq_len: int) -> Network:
        """Return the network without the values of its weights."""
        model = opened.model
        return write_network(
            model.served_at(max_seq_len),
            PlannedWeights(self.formats(precision), tied=model.outline.is_tied),
            CountedWeights(),
            Target(precision.compute, self._target.capability, max_num_tokens),
            max_seq_len=max_seq_len,
            block_size=BLOCK_SIZE,
            cache_dtype=cache_dtype(precision),
        )
