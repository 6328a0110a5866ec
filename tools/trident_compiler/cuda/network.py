"""A model's whole program: launches from token ids to logits, the places of their values, and the kernels to compile.

Owns the order of the work: lowering, fusing, naming kernels, placing values. Never compiles a kernel, and never writes
a file but what the weights go to.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import cast

from trident_backend.engine.gpu.program import Count, Launch, Program
from trident_compiler.cuda.arena import make_arena
from trident_compiler.cuda.attention_kernels import copy_blocks_spec
from trident_compiler.cuda.builder import ProgramBuilder
from trident_compiler.cuda.fusion import fuse_all
from trident_compiler.cuda.kernel_spec import KernelSpec
from trident_compiler.cuda.lowering import CudaLowering, NetworkSizes
from trident_compiler.cuda.operations import Target
from trident_compiler.cuda.sampling_kernels import sampling_specs
from trident_compiler.cuda.weights_file import CountedWeights
from trident_compiler.families.family import Decoder
from trident_compiler.families.ops import Weights
from trident_compiler.weights.weights import Weight


@dataclass(frozen=True)
class Network:
    """A program whose kernels are not compiled.

    Args:
        program: without kernels.
        specs: of all kernels, by the names that the program and the host have for them.
    """

    program: Program
    specs: Mapping[str, KernelSpec]


def write_network(
    model: Decoder,
    weights: Weights,
    stored: CountedWeights,
    target: Target,
    *,
    max_seq_len: int,
    block_size: int,
    cache_dtype: str | None = None,
    release: Callable[[Weight], None] = lambda _: None,
) -> Network:
    """Return a model's program.

    Args:
        model: as it is served with sequences of `max_seq_len` tokens.
        weights: of the model.
        stored: takes them.
        target: what it is written for.
        max_seq_len: tokens of a sequence, at most.
        block_size: tokens of a block of the KV cache.
        cache_dtype: Triton's type of the KV cache; None is that of activations.
        release: is told of each weight that is stored, whose values are not read again.

    Raises:
        CheckpointError: tensors are missing or of another shape.
    """
    builder = ProgramBuilder(stored)
    cached = cache_dtype or target.compute
    sizes = NetworkSizes(model.num_layers, model.vocab_size, max_seq_len, block_size, cached)
    lowering = CudaLowering(builder, target, sizes, release)
    lowering.finish(model.write(lowering, weights))
    fused = fuse_all(builder.steps)
    body = builder.launches(fused[Count.TOKENS], Count.TOKENS)
    head = cast(tuple[Launch, ...], builder.launches(fused[Count.ROWS], Count.ROWS))
    arena = make_arena(builder.values, body, head, target.max_rows)
    copy = copy_blocks_spec()
    specs, limits = sampling_specs(model.vocab_size, target.max_rows)
    program = Program(
        vocab_size=model.vocab_size,
        max_seq_len=max_seq_len,
        arena_bytes=arena.num_bytes,
        values=arena.values,
        weights=stored.stored,
        attention_kinds=builder.attention_kinds,
        body=body,
        head=head,
        cache_dtype=cached,
        sampling=limits,
    )
    return Network(program, {**builder.kernels, copy.function: copy, **specs})
