"""Steps by which captured launches are held against direct ones.

Owns which steps those are: some whose sequences have one or a few tokens each, some with a prompt, with and without
contexts before them. Never runs one. The first block stands for all that was before; the blocks after it are written.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from trident_backend.engine.protocol import EngineSpec, Int32Array, StepBatch

#: Tokens before a sequence, at most: enough that its keys are divided among programs.
_MAX_PAST_LEN = 640
#: Sequences of one token beside a prompt, at most.
_MAX_OTHERS = 3
#: Rows of a step whose logits are looked at, where it is the body that is tried.
_MAX_ROWS = 16


@dataclass(frozen=True)
class TrialSteps:
    """Steps within an engine's limits.

    Args:
        spec: the limits.
        few_len: tokens of a sequence that has only small tiles for all kinds of attention, at most.
    """

    spec: EngineSpec
    few_len: int

    @property
    def max_few_tokens(self) -> int:
        """The tokens of a step without large tiles, at most."""
        return min(self.spec.max_num_tokens, self.spec.max_num_seqs * self._few_len)

    def without_prompt(self, num_tokens: int) -> StepBatch | None:
        """Return a step of at most so many tokens and no large tile; None where the pool is too small for any."""
        num_seqs = min(num_tokens, self.spec.max_num_seqs, self._num_own_blocks // self._num_blocks(self._few_len))
        if not num_seqs:
            return None
        total = min(num_tokens, num_seqs * self._few_len)
        lens = [total // num_seqs + (index < total % num_seqs) for index in range(num_seqs)]
        return self._step(lens)

    def with_prompt(self, num_tokens: int) -> StepBatch | None:
        """Return a step of at most so many tokens with a prompt; None where there is none.

        The prompt has large tiles for the kinds of attention with the most query heads to a key's. It may be all small
        ones for kinds with fewer, whose small tiles hold more tokens.
        """
        num_others = min(num_tokens // 4, _MAX_OTHERS, self.spec.max_num_seqs - 1, self._num_own_blocks // 2)
        room = (self._num_own_blocks - num_others) * self.spec.block_size
        length = min(num_tokens - num_others, self.spec.max_seq_len, room)
        return self._step([length] + [1] * num_others) if length > self.few_len else None

    @property
    def _few_len(self) -> int:
        return min(self.few_len, self.spec.max_seq_len)

    @property
    def _num_own_blocks(self) -> int:
        return self.spec.num_blocks - 1

    def _num_blocks(self, num_tokens: int) -> int:
        return -(-num_tokens // self.spec.block_size)

    def _step(self, lens: Sequence[int]) -> StepBatch:
        past_lens = [self._past_len(index, length) for index, length in enumerate(lens)]
        tables: list[list[int]] = []
        next_block = 1
        for length, past_len in zip(lens, past_lens, strict=True):
            num_own = self._num_blocks(length)
            tables.append([0] * (past_len // self.spec.block_size) + list(range(next_block, next_block + num_own)))
            next_block += num_own
        total = sum(lens)
        return StepBatch(
            token_ids=(np.arange(total) * 7919 % self.spec.vocab_size).astype(np.int32),
            position_ids=_ints(p + i for length, p in zip(lens, past_lens, strict=True) for i in range(length)),
            past_lens=_ints(past_lens),
            subsequence_begins=_begins(lens),
            block_indices=_ints(block for table in tables for block in table),
            block_indices_begins=_begins([len(table) for table in tables]),
            max_context_len=max(length + past_len for length, past_len in zip(lens, past_lens, strict=True)),
            logit_rows=spread_rows(total, min(total, _MAX_ROWS)),
        )

    def _past_len(self, index: int, length: int) -> int:
        """Return how many tokens, in whole blocks, are before a sequence: many, fewer, and none for most sequences."""
        most = min(_MAX_PAST_LEN, self.spec.max_seq_len - length)
        return most * max(0, 2 - index) // 2 // self.spec.block_size * self.spec.block_size


def spread_rows(num_tokens: int, num_rows: int) -> Int32Array:
    """Return so many rows of a step, ascending and evenly spread; some come twice if there are too few."""
    return _ints(max(0, (index + 1) * num_tokens // num_rows - 1) for index in range(num_rows))


def _begins(lens: Sequence[int]) -> Int32Array:
    return np.concatenate([[0], np.cumsum(lens)]).astype(np.int32)


def _ints(values: Iterable[int]) -> Int32Array:
    return np.fromiter(values, np.int32)
