"""Builds an engine folder from the folder of a model.

Owns the order of the work: tokenizer, token table, weights, network, and the manifest last. Never decides where the
folder lies in a repository, never plans, and never prints: it reports to a `Progress`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from trident_compiler.compiler import EngineCompiler, Progress
from trident_compiler.model_folder import Opened
from trident_compiler.planning.memory_plan import MemoryPlan
from trident_ensemble.contract import layout
from trident_ensemble.contract.digests import digest_folder
from trident_ensemble.contract.manifest import (
    FORMAT_VERSION,
    Architecture,
    KVLayout,
    Limits,
    Manifest,
    Precision,
    write_manifest,
)
from trident_ensemble.text.anchors import anchor_table


def build_engine(
    opened: Opened,
    folder: Path,
    precision: Precision,
    plan: MemoryPlan,
    *,
    compiler: EngineCompiler[Opened],
    describe_text: Callable[[Path], None],
    progress: Progress,
) -> Manifest:
    """Write a complete engine into an existing, empty folder.

    Args:
        opened: what is built.
        folder: where.
        precision: as the compiler resolved it.
        plan: as the compiler made it.
        compiler: what compiles the network.
        describe_text: called with the engine folder once its tokenizer is there; writes what the text models must know.
        progress: receives the build's progress.

    Raises:
        CheckpointError: the tensors are not those of the architecture, or the tokenizer cannot be served.
        BuildError: the compiler refuses the network.
    """
    model = opened.model
    # What is quick comes first: a checkpoint that could not be served is refused before an hour of compiling.
    progress.phase("checking the tokenizer", 0)
    opened.tokenizer_files.write(folder / layout.TOKENIZER_FOLDER)
    table = anchor_table(folder / layout.TOKENIZER_FOLDER / layout.TOKENIZER_FILE, model.vocab_size)
    np.save(folder / layout.TOKEN_TABLE_FILE, table, allow_pickle=False)
    describe_text(folder)

    compiler.write(folder, opened, precision=precision, plan=plan, progress=progress)

    progress.phase("computing digests", 0)
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        architecture=Architecture(model.model_type, model.num_layers, model.vocab_size),
        limits=Limits(plan.max_num_seqs, plan.max_num_tokens, plan.max_seq_len),
        precision=precision,
        kv_cache=KVLayout(plan.block_size, plan.num_blocks, plan.block_bytes, plan.kv_kind),
        compiler=compiler.compiler,
        generation=opened.generation,
        digests=digest_folder(folder),
        tensor_parallel=compiler.num_devices,
        resident_bytes=plan.resident_bytes,
    )
    write_manifest(folder, manifest)
    return manifest
