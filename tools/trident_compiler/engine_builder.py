"""From a checkpoint to an engine folder.

Owns the order of the work: plan, weights, network, tokenizer, token table, manifest last. Never decides where the
folder lies in a repository, and prints nothing: progress goes to whoever asks.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np

from trident_backend.engine.artifact import (
    FORMAT_VERSION,
    Architecture,
    KVLayout,
    Limits,
    Manifest,
    Precision,
    digest_folder,
    write_manifest,
)
from trident_compiler import openvino_compiler, weights
from trident_compiler.checkpoint import TOKENIZER_FILE, Checkpoint
from trident_compiler.machine import Machine
from trident_compiler.plan import MemoryPlan, Needs, Wanted, make_plan
from trident_ensemble import layout
from trident_ensemble.anchors import anchor_table
from trident_ensemble.errors import PlanError


class Progress(Protocol):
    """Told what is going on."""

    def phase(self, name: str, total: int) -> None:
        """A phase of `total` bytes begins; 0 is unknown."""
        ...

    def reached(self, done: int) -> None:
        """So many bytes of the phase are done."""
        ...


class SilentProgress:
    """Nobody watches."""

    def phase(self, name: str, total: int) -> None:
        """Ignored."""

    def reached(self, done: int) -> None:
        """Ignored."""


def choose_precision(
    checkpoint: Checkpoint, compute: str | None, weight_format: str | None, machine: Machine
) -> Precision:
    """The number formats of an engine, defaults resolved.

    Args:
        checkpoint: what is built.
        compute: bf16 or fp32; None is the faster on the machine.
        weight_format: bf16, int8 or int4; None is as stored: 16 bits, or fp32 for fp32 tensors computed in fp32.
        machine: where it will run.

    Raises:
        PlanError: the CPU cannot compute in it.
    """
    if compute == "bf16" and not openvino_compiler.computes_bf16():
        raise PlanError("--precision bf16: this CPU cannot compute in bfloat16, which takes AVX-512; use fp32")
    compute = compute or ("bf16" if machine.fast_bf16 else "fp32")
    stored = {tensor.dtype for tensor in checkpoint.tensors.values() if tensor.values.ndim == 2}
    as_stored = weights.FP32 if compute == "fp32" and stored == {"F32"} else weights.BF16
    return Precision(compute, weight_format or as_stored, openvino_compiler.kv_precision(compute))


def plan_engine(checkpoint: Checkpoint, precision: Precision, wanted: Wanted, machine: Machine) -> MemoryPlan:
    """The memory plan of an engine, from a compiled probe of its attention.

    Raises:
        PlanError: it does not fit.
    """
    layer = openvino_compiler.probe_cache(checkpoint.config, precision)
    tied = checkpoint.config.tie_word_embeddings
    weights_bytes = weights.estimated_bytes(checkpoint.tensors, precision.weights, tied=tied)
    needs = Needs(
        weights_bytes=weights_bytes,
        resident_bytes=int(weights_bytes * openvino_compiler.RESIDENT_SHARE),
        block_size=layer.block_size,
        block_bytes=layer.block_bytes * checkpoint.config.num_layers,
        max_position_embeddings=checkpoint.config.max_position_embeddings,
    )
    return make_plan(wanted, needs, machine.free_bytes)


def build_engine(
    checkpoint: Checkpoint, folder: Path, precision: Precision, plan: MemoryPlan, progress: Progress
) -> Manifest:
    """Write a complete engine into an existing, empty folder.

    Raises:
        CheckpointError: the tensors are not those of the architecture.
    """
    config = checkpoint.config
    progress.phase("preparing weights", checkpoint.tensors.num_bytes)
    prepared = 0

    def on_weight(num_bytes: int) -> None:
        nonlocal prepared
        prepared += num_bytes
        progress.reached(prepared)

    plain = weights.FP32 if precision.weights == weights.FP32 else openvino_compiler.plain_format(precision.compute)
    matrix = precision.weights if precision.weights in weights.QUANTIZED else plain
    source = weights.WeightSource(
        checkpoint.tensors, matrix, plain, tied=config.tie_word_embeddings, on_weight=on_weight
    )
    network = openvino_compiler.lower(config, source)
    progress.phase("writing the network", source.num_bytes)
    openvino_compiler.write_network(folder, network, progress.reached)

    progress.phase("writing the tokenizer", 0)
    checkpoint.copy_tokenizer(folder / layout.TOKENIZER_FOLDER)
    table = anchor_table(folder / layout.TOKENIZER_FOLDER / TOKENIZER_FILE, config.vocab_size)
    np.save(folder / layout.TOKEN_TABLE_FILE, table, allow_pickle=False)

    progress.phase("computing digests", 0)
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        architecture=Architecture(config.family, config.num_layers, config.vocab_size),
        limits=Limits(plan.max_num_seqs, plan.max_num_tokens, plan.max_seq_len),
        precision=precision,
        kv_cache=KVLayout(plan.needs.block_size, plan.num_blocks, plan.needs.block_bytes),
        compiler=openvino_compiler.compiler(),
        generation=checkpoint.generation,
        digests=digest_folder(folder),
    )
    write_manifest(folder, manifest)
    return manifest
