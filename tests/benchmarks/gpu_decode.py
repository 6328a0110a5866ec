"""Generation steps of a loaded engine, timed one by one.

Owns the steps: any number of sequences, one token each, behind contexts of one length. Never loads an engine and never
draws a token from what comes out; what lies in the cache has no bearing on the time.
"""

from __future__ import annotations

import time
from statistics import median

import numpy as np

from trident_backend.engine.protocol import Engine, Int32Array, StepBatch, execute
from trident_ensemble.contract.manifest import KVKind

_WARM_UP = 5


def step_seconds(engine: Engine, num_seqs: int, context_len: int, repeats: int) -> float:
    """The median time of a step until each sequence's likeliest token is known.

    Args:
        engine: with room for all of them.
        num_seqs: sequences in the step.
        context_len: tokens that each attends to, its own included.
        repeats: steps measured, after a few that are not.
    """
    batch = generation_step(engine, num_seqs, context_len)
    rows = np.arange(num_seqs, dtype=np.intp)
    seconds = []
    for _ in range(_WARM_UP + repeats):
        start = time.perf_counter()
        execute(engine, batch).argmax(rows)
        seconds.append(time.perf_counter() - start)
    return median(seconds[_WARM_UP:])


def generation_step(engine: Engine, num_seqs: int, context_len: int) -> StepBatch:
    """A step that computes the last token of `num_seqs` contexts."""
    spec = engine.spec
    tables = _tables(engine, num_seqs, context_len)
    token_ids = np.random.default_rng(num_seqs).integers(0, spec.vocab_size, num_seqs)
    return StepBatch(
        token_ids=token_ids.astype(np.int32),
        position_ids=np.full(num_seqs, context_len - 1, np.int32),
        past_lens=np.full(num_seqs, context_len - 1, np.int32),
        subsequence_begins=np.arange(num_seqs + 1, dtype=np.int32),
        block_indices=tables.ravel(),
        block_indices_begins=np.arange(0, tables.size + 1, tables.shape[1], dtype=np.int32),
        max_context_len=context_len,
        logit_rows=np.arange(num_seqs, dtype=np.int32),
    )


def _tables(engine: Engine, num_seqs: int, context_len: int) -> Int32Array:
    """Block tables `[num_seqs, blocks of one]`; slots are the first ones, as the lowest are taken first."""
    spec = engine.spec
    num_blocks = 1 if spec.kv_kind is KVKind.SLOTS else -(-context_len // spec.block_size)
    if num_seqs * num_blocks > spec.num_blocks or num_seqs > spec.max_num_seqs or context_len > spec.max_seq_len:
        raise ValueError(f"the engine has no room for {num_seqs} sequences of {context_len} tokens")
    return np.arange(num_seqs * num_blocks, dtype=np.int32).reshape(num_seqs, num_blocks)
