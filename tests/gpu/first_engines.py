"""Whole engines on a GPU for the first time: tokens per second of generation and of prompts.

Owns the steps that are timed, and the random weights of an engine that has been carried here without any. Never draws a
token from what comes out.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import numpy as np

from tests.benchmarks.gpu_decode import step_seconds
from tests.gpu.first_linear import random_weight
from trident_backend.engine.cuda.loading import load
from trident_backend.engine.cuda.program_file import read_program
from trident_backend.engine.protocol import Engine, StepBatch, execute
from trident_ensemble.contract import layout
from trident_ensemble.contract.manifest import read_manifest

#: Sequences that generate at once, and the tokens that each attends to.
SEQUENCES = (1, 10, 50, 100)
CONTEXT = 512
_REPEATS = 20


def give_weights(folder: Path) -> None:
    """Write random weights into an engine that has none."""
    path = folder / layout.WEIGHTS_FILE
    if path.exists():
        return
    rng = np.random.default_rng(0)
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        for weight in read_program(folder).weights:
            file.seek(weight.offset)
            file.write(random_weight(weight, rng).tobytes())
    partial.rename(path)


def measure(
    folder: Path, sequences: tuple[int, ...] = SEQUENCES, context: int = CONTEXT, repeats: int = _REPEATS
) -> Iterator[str]:
    """Load an engine and time it; yields lines."""
    give_weights(folder)
    manifest = read_manifest(folder)
    begin = time.perf_counter()
    engine = load(folder, manifest)
    try:
        yield (
            f"engine {folder.name} ({manifest.architecture.num_layers} layers, {manifest.precision.weights}): loaded "
            f"with its graphs in {time.perf_counter() - begin:.1f} s"
        )
        for count in sequences:
            if count > engine.spec.max_num_seqs:
                continue
            seconds = step_seconds(engine, count, context, repeats)
            yield (
                f"engine {folder.name}, {count} sequences of {context} tokens: {seconds * 1e3:.2f} ms a step, "
                f"{count / seconds:.0f} tokens/s"
            )
        length = min(engine.spec.max_num_tokens, engine.spec.max_seq_len)
        seconds = _prompt_seconds(engine, length, max(1, repeats // 4))
        yield f"engine {folder.name}, prompt of {length}: {seconds * 1e3:.1f} ms, {length / seconds:.0f} tokens/s"
    finally:
        engine.close()


def _prompt_seconds(engine: Engine, length: int, repeats: int) -> float:
    """The median time of a step that is one whole prompt, until its likeliest next token is known."""
    num_blocks = -(-length // engine.spec.block_size)
    batch = StepBatch(
        token_ids=np.random.default_rng(0).integers(0, engine.spec.vocab_size, length).astype(np.int32),
        position_ids=np.arange(length, dtype=np.int32),
        past_lens=np.zeros(1, np.int32),
        subsequence_begins=np.array([0, length], np.int32),
        block_indices=np.arange(num_blocks, dtype=np.int32),
        block_indices_begins=np.array([0, num_blocks], np.int32),
        max_context_len=length,
        logit_rows=np.array([length - 1], np.int32),
    )
    seconds = []
    for _ in range(1 + repeats):
        begin = time.perf_counter()
        execute(engine, batch).argmax(np.zeros(1, np.intp))
        seconds.append(time.perf_counter() - begin)
    return median(seconds[1:])
