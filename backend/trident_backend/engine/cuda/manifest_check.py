"""The check that a manifest says what a program is.

Owns the comparison, field by field. Never opens a file.
"""

from __future__ import annotations

from collections.abc import Iterator

from trident_backend.engine.cuda.program_file import PROGRAM_FILE
from trident_backend.engine.gpu.block_pool import block_bytes_of
from trident_backend.engine.gpu.program import ITEM_BYTES, AttentionCall, Count, Program
from trident_ensemble.contract import layout
from trident_ensemble.contract.errors import ArtifactError
from trident_ensemble.contract.manifest import KVKind, Manifest, sm_target

#: The KV cache's formats as manifests name them, by Triton's names.
_CACHE_FORMATS = {"bf16": "bf16", "fp16": "f16", "fp32": "f32", "fp8e4nv": "fp8"}


def check_manifest(manifest: Manifest, program: Program) -> None:
    """Compare a manifest with the program beside it, which `check_program` has nothing against.

    Raises:
        ArtifactError: they differ; names the field.
    """
    for field, file in _files(program):
        if file not in manifest.digests:
            raise ArtifactError(f"{field}: {file!r} has no digest in the manifest; build again")
    for field, stated, found in _facts(manifest, program):
        if stated != found:
            raise ArtifactError(f"{field}: the manifest says {stated}, the program has {found}; build again")
    max_num_tokens, max_rows = manifest.limits.max_num_tokens, program.sampling.max_rows
    if max_rows < max_num_tokens:
        raise ArtifactError(
            f"limits.max_num_tokens: a step may have {max_num_tokens} rows of logits, sampling's kernels take "
            f"{max_rows}; build again"
        )
    for i, value in enumerate(program.values):
        num_rows = 1 if value.count is Count.ONE else max_num_tokens
        end = value.offset + num_rows * value.width * ITEM_BYTES[value.dtype]
        if end > program.arena_bytes:
            raise ArtifactError(
                f"program.values[{i}]: {num_rows} rows end at {end}, the arena has {program.arena_bytes} bytes; "
                "build again"
            )


def check_target(manifest: Manifest, capability: tuple[int, int], ordinal: int) -> None:
    """Compare the GPU that the kernels were compiled for with this machine's.

    Raises:
        ArtifactError: they differ.
    """
    found = sm_target(capability)
    if manifest.compiler.target != found:
        raise ArtifactError(
            f"compiler.target: the kernels were compiled for {manifest.compiler.target}, GPU {ordinal} is {found}; "
            "build again for it"
        )


def _files(program: Program) -> Iterator[tuple[str, str]]:
    """Yield each file that the host reads, after the field that says so."""
    yield "program", PROGRAM_FILE
    yield "program.weights", layout.WEIGHTS_FILE
    for name, kernel in program.kernels.items():
        yield f"program.kernels.{name}.file", kernel.file


def _facts(manifest: Manifest, program: Program) -> Iterator[tuple[str, object, object]]:
    """Yield each field, what the manifest says, and what the program has."""
    cache = manifest.kv_cache
    yield "architecture.vocab_size", manifest.architecture.vocab_size, program.vocab_size
    yield "limits.max_seq_len", manifest.limits.max_seq_len, program.max_seq_len
    num_layers = sum(isinstance(each, AttentionCall) for each in program.body)
    yield "architecture.num_layers", manifest.architecture.num_layers, num_layers
    yield "tensor_parallel", manifest.tensor_parallel, 1
    yield "kv_cache.kind", cache.kind.value, KVKind.BLOCKS.value
    for kind in program.attention_kinds:
        for name in (kind.write, kind.few, kind.many):
            yield "kv_cache.block_size", cache.block_size, program.kernels[name].constants["BLOCK"]
    yield "kv_cache.block_bytes", cache.block_bytes, block_bytes_of(program, cache.block_size)
    yield "precision.kv_cache", manifest.precision.kv_cache, _CACHE_FORMATS[program.cache_dtype]
