"""What the core asks of an engine.

Owns the step's input arrays, the engine's shape as the scheduler sees it, and the few operations on logits that
sampling is made of. Never knows a compiler or a model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

Int32Array = npt.NDArray[np.int32]
FloatArray = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Indices = npt.NDArray[np.intp]
TokenIds = npt.NDArray[np.int64]

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


class PenaltyHistory(Protocol):
    """A sequence whose penalties are kept between steps where its logits are; it is told from others by identity."""

    @property
    def num_output_tokens(self) -> int:
        """How many tokens of output the penalties are made of."""
        ...

    def since(self, num_output_tokens: int) -> dict[int, float]:
        """Return what is taken off the logits of the tokens that came after the output's first `num_output_tokens`."""
        ...


class RowPenalties(NamedTuple):
    """How the tokens that have come before change one row of logits. No array holds a token twice.

    Args:
        repetition: divides the logits of `seen_ids` from 0 on, and multiplies those below.
        seen_ids: `[n]`, none where `repetition` is 1.
        counted_ids: `[m]`, all of them in `seen_ids` where `repetition` is not 1.
        offsets: `[m]`, what is then taken off the logits of `counted_ids`.
        history: whose penalties they are; None where guesses are taken for output.
    """

    repetition: np.float32
    seen_ids: TokenIds
    counted_ids: TokenIds
    offsets: FloatArray
    history: PenaltyHistory | None

    @property
    def ids(self) -> TokenIds:
        """The tokens whose logits change."""
        return self.seen_ids if len(self.seen_ids) else self.counted_ids


class StepLogits(Protocol):
    """The logits of a step, `[R, V]`, wherever they lie: what sampling asks of them and does to them. What comes of a
    row depends on that row alone. Rows are named in ascending order, each once, but in `read` and `write`; none at all
    in `find_ties`, `read` and `write` alone."""

    @property
    def shape(self) -> tuple[int, int]:
        """R and V."""
        ...

    def argmax(self, rows: Indices) -> tuple[TokenIds, FloatArray]:
        """The rows' likeliest tokens, of equals those of the lowest ids, and their logits, `[n]`; the latter is NaN or
        +inf where one of the row is NaN or +inf, and its token may be any."""
        ...

    def chunk_exp_sums(
        self, rows: Indices, maxima: FloatArray, temperatures: Doubles, floors: FloatArray | None = None
    ) -> Doubles:
        """Sum the weights `exp((logit - maximum) / temperature)` over each chunk of the vocabulary.

        Args:
            rows: `[n]`; of one with NaN or +inf anything may come.
            maxima: `[n]`, the rows' largest, so that the largest weight is 1.
            temperatures: `[n]`, from 1e-30 to 1e30.
            floors: `[n]`, logits below which a token weighs nothing; None where all weigh.

        Returns:
            `[n, ceil(V / CHUNK_WIDTH)]`.
        """
        ...

    def top_k(self, rows: Indices, count: int) -> tuple[FloatArray, TokenIds]:
        """Find the rows' largest logits and their token ids.

        Args:
            rows: `[n]`; of one with NaN or +inf anything may come.
            count: how many, from 1 to V.

        Returns:
            values and ids `[n, count]`, the largest first. Among equals any come first, and any come at all.
        """
        ...

    def find_ties(self, rows: Indices, values: FloatArray, counts: TokenIds) -> list[TokenIds]:
        """Find the tokens whose logits are these very numbers.

        Args:
            rows: `[n]`.
            values: `[n]`, finite.
            counts: `[n]`, how many tokens of each are wanted, from 1.

        Returns:
            of each row the lowest ids, ascending; fewer where there are fewer.
        """
        ...

    def read(self, rows: Indices, ids: TokenIds) -> FloatArray:
        """Some logits: those of pairs of a row and a token, in any order and of any shape, each array broadcast."""
        ...

    def write(self, rows: Indices, ids: TokenIds, values: FloatArray) -> None:
        """Change some logits.

        Args:
            rows: `[n]`, ascending; a row stands once for each of its tokens.
            ids: `[n]`; a pair that stands twice has the same value in both places.
            values: `[n]`, or `[]` for all.
        """
        ...

    def penalise(self, rows: Indices, penalties: Sequence[RowPenalties]) -> None:
        """Change the logits of tokens that have come before, in single precision.

        Args:
            rows: `[n]`.
            penalties: of each.
        """
        ...

    def apply_token_bitmask(self, rows: Indices, words: npt.NDArray[np.uint32]) -> None:
        """Ban the tokens that masks do not allow: their logits become -inf.

        Args:
            rows: `[n]`.
            words: `[n, ceil(V / 32)]`; token t is bit t % 32 (least significant first) of word t // 32.
        """
        ...


class Engine(Protocol):
    """A compiled network with its KV cache.

    One thread at a time uses an engine and the logits it returns. An engine computes one step at a time: between
    `submit` and `collect` its caller is free to do what does not depend on the step.
    """

    @property
    def spec(self) -> EngineSpec:
        """The engine's limits."""
        ...

    def submit(self, batch: StepBatch) -> None:
        """Begin to compute one step, and return while it is being computed.

        The logits of the step before become invalid. Exactly one `collect` must follow before the next `submit`.

        Args:
            batch: the step. The engine may read its arrays until `collect` returns; nobody may write to them.

        Raises:
            EngineError: the step could not begin, and there is nothing to collect. What it wrote to the KV cache is
                undefined. The engine takes further steps, unless the error is an EngineLostError.
        """
        ...

    def collect(self) -> StepLogits:
        """Wait until the submitted step has been computed and written to the KV cache. Other threads run meanwhile.

        Returns:
            logits `[R, vocab_size]`, valid until the next `submit` or `close`. The caller may write to them.

        Raises:
            EngineError: the step failed. What it wrote to the KV cache is undefined. The engine takes further steps,
                unless the error is an EngineLostError.
        """
        ...

    def close(self) -> None:
        """Free what the engine holds, after waiting for a step that was submitted and not collected.

        The engine cannot be used again.
        """
        ...


def execute(engine: Engine, batch: StepBatch) -> StepLogits:
    """Compute one step with nothing done meanwhile.

    Returns:
        the logits, as of `Engine.collect`.

    Raises:
        EngineError: the step failed.
    """
    engine.submit(batch)
    return engine.collect()
