"""What the core asks of an engine.

Owns the step's input arrays, the engine's shape as the scheduler sees it, and the two operations on whole rows of
logits that sampling is made of. Never knows a compiler or a model.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol

import numpy as np
import numpy.typing as npt

Int32Array = npt.NDArray[np.int32]
FloatArray = npt.NDArray[np.float32]

#: Tokens in one chunk of the vocabulary, whose weights are summed; the last chunk may have fewer.
CHUNK_WIDTH = 256


class KVKind(str, Enum):
    """How an engine lays out its KV cache."""

    #: A pool of equal blocks; a sequence has as many as its tokens need, anywhere in the pool.
    BLOCKS = "blocks"
    #: One slot for each sequence, as long as the longest.
    SLOTS = "slots"


@dataclass(frozen=True)
class EngineSpec:
    """The engine's limits.

    Args:
        vocab_size: width of a row of logits.
        max_num_seqs: sequences in one step, at most.
        max_num_tokens: tokens computed in one step, at most.
        max_seq_len: prompt and output of one sequence together, at most.
        block_size: tokens in one KV block, or slot.
        num_blocks: KV blocks in the pool, or slots.
        kv_kind: which of both it has.
    """

    vocab_size: int
    max_num_seqs: int
    max_num_tokens: int
    max_seq_len: int
    block_size: int
    num_blocks: int
    kv_kind: KVKind = KVKind.BLOCKS


@dataclass(frozen=True)
class StepBatch:
    """All sequences of a step, packed on one axis of T tokens; S sequences; R rows of logits wanted.

    Args:
        token_ids: `[T]`.
        position_ids: `[T]`, each token's place in its sequence.
        past_lens: `[S]`, tokens of each sequence already in the cache.
        subsequence_begins: `[S + 1]`, where each sequence's tokens begin on the packed axis.
        block_indices: all block tables after one another.
        block_indices_begins: `[S + 1]`, where each sequence's table begins.
        max_context_len: the longest sequence's tokens, cached and new.
        logit_rows: `[R]`, places on the packed axis whose logits are wanted.
        block_copies: `[C, 3]`, blocks to copy before anything is computed, one after another: from which, to which, and
            how many of its first tokens; what lies behind them may be copied too.
    """

    token_ids: Int32Array
    position_ids: Int32Array
    past_lens: Int32Array
    subsequence_begins: Int32Array
    block_indices: Int32Array
    block_indices_begins: Int32Array
    max_context_len: int
    logit_rows: Int32Array
    block_copies: Int32Array = field(default_factory=lambda: np.empty((0, 3), np.int32))


class VocabularyKernels(Protocol):
    """Operations on whole rows of logits, which run where the logits are. What they give for a row depends on that row
    alone. Logits are C-contiguous `[R, V]`, read and never changed; of a row with NaN or +inf anything may come."""

    def masses(
        self, logits: FloatArray, maxima: FloatArray, inverse_temperatures: FloatArray, floors: FloatArray | None = None
    ) -> FloatArray:
        """Sum the weights `exp((logit - maximum) * inverse_temperature)` over each chunk of the vocabulary.

        Args:
            logits: `[R, V]`.
            maxima: `[R]`, the rows' largest, so that the largest weight is 1.
            inverse_temperatures: `[R]`, finite.
            floors: `[R]`, logits below which a token weighs nothing; None where all weigh.

        Returns:
            float32 `[R, ceil(V / CHUNK_WIDTH)]`.
        """
        ...

    def largest(self, logits: FloatArray, count: int) -> tuple[FloatArray, Int32Array]:
        """Find each row's largest logits and their token ids.

        Args:
            logits: `[R, V]`.
            count: how many, up to V.

        Returns:
            values and ids `[R, count]`, the largest first. Among equals any come first, and any come at all.
        """
        ...


class Engine(Protocol):
    """A compiled network with its KV cache."""

    @property
    def spec(self) -> EngineSpec:
        """The engine's limits."""
        ...

    @property
    def kernels(self) -> VocabularyKernels:
        """What finds and sums in the engine's logits."""
        ...

    def execute(self, batch: StepBatch) -> FloatArray:
        """Compute one step, writing the KV cache.

        Returns:
            logits `[R, vocab_size]`, valid until the next call; the caller may write to them.

        Raises:
            EngineError: the step failed; what it wrote to the cache is undefined.
        """
        ...

    def close(self) -> None:
        """Free what the engine holds; it cannot be used again."""
        ...
