"""Drives an engine by hand: sequences with scattered block tables, packed into any mix of chunks."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from trident_backend.engine.protocol import Engine, StepBatch, StepLogits, execute

Floats = npt.NDArray[np.float32]


def whole(logits: StepLogits) -> Floats:
    """A copy of all rows."""
    num_rows, vocab_size = logits.shape
    return logits.read(np.arange(num_rows)[:, None], np.arange(vocab_size))


@dataclass
class DrivenSequence:
    """One sequence and its place in the pool."""

    tokens: list[int]
    num_computed: int = 0
    block_table: list[int] = field(default_factory=list)


class Driver:
    """Owns the free blocks of an engine; hands them out in a shuffled order."""

    def __init__(self, engine: Engine, seed: int = 0) -> None:
        self._engine = engine
        self._free = [int(block) for block in np.random.default_rng(seed).permutation(engine.spec.num_blocks)]

    def batch(self, chunks: list[tuple[DrivenSequence, int]], num_logits: int | None = None) -> StepBatch:
        """Pack the next tokens of each sequence; logits of all, or of the first few."""
        token_ids: list[int] = []
        position_ids: list[int] = []
        begins, block_indices, block_begins = [0], list[int](), [0]
        for sequence, count in chunks:
            end = sequence.num_computed + count
            while len(sequence.block_table) * self._engine.spec.block_size < end:
                sequence.block_table.append(self._free.pop())
            token_ids += sequence.tokens[sequence.num_computed : end]
            position_ids += range(sequence.num_computed, end)
            block_indices += sequence.block_table
            begins.append(len(token_ids))
            block_begins.append(len(block_indices))
        return StepBatch(
            token_ids=np.array(token_ids, np.int32),
            position_ids=np.array(position_ids, np.int32),
            past_lens=np.array([sequence.num_computed for sequence, _ in chunks], np.int32),
            subsequence_begins=np.array(begins, np.int32),
            block_indices=np.array(block_indices, np.int32),
            block_indices_begins=np.array(block_begins, np.int32),
            max_context_len=max(sequence.num_computed + count for sequence, count in chunks),
            logit_rows=np.arange(len(token_ids) if num_logits is None else num_logits, dtype=np.int32),
        )

    def step(self, chunks: list[tuple[DrivenSequence, int]]) -> list[Floats]:
        """Compute one packed step; returns the logits of every token, by chunk."""
        batch = self.batch(chunks)
        logits = whole(execute(self._engine, batch))
        for sequence, count in chunks:
            sequence.num_computed += count
        return np.split(logits, batch.subsequence_begins[1:-1])

    def whole(self, tokens: list[int]) -> Floats:
        """All logits of a new sequence, computed alone in one step: `[len(tokens), vocab]`."""
        return self.step([(DrivenSequence(tokens), len(tokens))])[0]
