"""The memory that an engine of our own kernels takes on its GPU, as its KV cache is planned with it.

Owns what the host will allocate, counted from the very program that it will run, and the one estimate: what CUDA takes
by itself. Never plans the cache, and never compiles.
"""

from __future__ import annotations

from trident_backend.engine.cuda.step_memory import sizes_of
from trident_backend.engine.gpu.attention_plan import AttentionPlanner
from trident_backend.engine.gpu.block_pool import block_bytes_of
from trident_backend.engine.gpu.program import Program
from trident_compiler.planning.memory_plan import MemoryKind, MemoryRequirements
from trident_compiler.planning.slot_plan import DEFAULT_CACHE_SHARE, DEFAULT_MAX_NUM_TOKENS

GPU_MEMORY = MemoryKind(
    DEFAULT_MAX_NUM_TOKENS,
    DEFAULT_CACHE_SHARE,
    "weights and what a step takes",
    "quantize the weights (--weights int8 or int4), lower --max-num-tokens, or take a larger GPU",
)

#: CUDA's context, the kernels, and the graphs of all sizes of steps: an estimate that no GPU has confirmed.
CONTEXT_BYTES = 1 << 29
#: What sampling's operations take and give, and the small inputs of a step.
_SMALL_BYTES = 1 << 25


def memory_needs(
    program: Program, *, block_size: int, max_num_tokens: int, num_programs: int, longest: int
) -> MemoryRequirements:
    """Return the memory that a program needs.

    Args:
        program: with all values, weights and kinds of attention; its kernels do not count.
        block_size: tokens of a block of the KV cache.
        max_num_tokens: of a step.
        num_programs: how many programs of a kernel fill the GPU.
        longest: positions of the checkpoint.
    """
    last = program.weights[-1]
    weights_bytes = last.offset + last.num_bytes
    bounds = [AttentionPlanner(kind, num_programs).bounds(max_num_tokens) for kind in program.attention_kinds]
    step_bytes = sum(sizes_of(program, bounds, max_num_tokens).values())
    # Rows as they were changed, and the table of penalties, in float32.
    sampling_bytes = (program.sampling.max_chosen + program.sampling.num_table_rows) * program.vocab_size * 4
    return MemoryRequirements(
        weights_bytes=weights_bytes,
        resident_bytes=weights_bytes + step_bytes + sampling_bytes + _SMALL_BYTES + CONTEXT_BYTES,
        block_size=block_size,
        block_bytes=block_bytes_of(program, block_size),
        max_position_embeddings=longest,
    )
