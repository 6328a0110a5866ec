"""How well an engine foretells a text."""

from __future__ import annotations

import numpy as np

from trident_backend.engine.protocol import Engine, StepBatch, execute

#: Tokens that are computed at once, from nothing.
WINDOW = 512


def perplexity(engine: Engine, token_ids: list[int]) -> float:
    """Of the tokens, in windows of their own, in float64."""
    losses: list[float] = []
    for begin in range(0, len(token_ids), WINDOW):
        ids = np.array(token_ids[begin : begin + WINDOW], np.int32)
        count = len(ids)
        positions, ends = np.arange(count, dtype=np.int32), np.array([0, count], np.int32)
        blocks = np.arange(-(-count // engine.spec.block_size), dtype=np.int32)
        tables = np.array([0, len(blocks)], np.int32)
        logits = execute(engine, StepBatch(ids, positions, ends[:1], ends, blocks, tables, count, positions))
        vocabulary = np.arange(engine.spec.vocab_size)[None]
        rows = logits.read(positions[:, None].astype(np.intp), vocabulary).astype(np.float64)
        largest = rows.max(axis=1)
        totals = np.log(np.exp(rows - largest[:, None]).sum(axis=1)) + largest
        losses += (totals[:-1] - rows[np.arange(count - 1), ids[1:]]).tolist()
    return float(np.exp(np.mean(losses)))
