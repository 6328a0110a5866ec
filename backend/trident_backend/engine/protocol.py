"""What the core asks of an engine.

Owns the arrays of a step, the engine's limits as the scheduler sees them, and the few operations on logits that
sampling is made of. Never knows a compiler or a model.
"""

from __future__ import annotations

import collections.abc as cabc
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from trident_ensemble.contract.manifest import KVKind, Manifest

Int32Array = npt.NDArray[np.int32]
FloatArray = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Indices = npt.NDArray[np.intp]
TokenIds = npt.NDArray[np.int64]

#: Tokens in one chunk of the vocabulary, whose weights are summed; the last chunk may have fewer.
CHUNK_WIDTH = 256


@dataclass(frozen=True)
class EngineSpec:
    """The engine's limits.

    Args:
        vocab_size: width of a row of logits.
        max_num_seqs: most sequences in one step.
        max_num_tokens: most tokens computed in one step.
        max_seq_len: most tokens of one sequence, prompt and output together.
        block_size: tokens in one KV block; with `KVKind.SLOTS`, in one slot.
        num_blocks: KV blocks in the pool; with `KVKind.SLOTS`, slots.
        kv_kind: how the KV cache is laid out.
        supports_draft_tokens: whether the draft tokens of several sequences are verified in one pass of the network.
    """

    vocab_size: int
    max_num_seqs: int
    max_num_tokens: int
    max_seq_len: int
    block_size: int
    num_blocks: int
    kv_kind: KVKind = KVKind.BLOCKS
    supports_draft_tokens: bool = True

    @classmethod
    def from_manifest(cls, manifest: Manifest) -> EngineSpec:
        """Return the limits that an engine's manifest states."""
        kind = manifest.kv_cache.kind
        return cls(
            vocab_size=manifest.architecture.vocab_size,
            max_num_seqs=manifest.limits.max_num_seqs,
            max_num_tokens=manifest.limits.max_num_tokens,
            max_seq_len=manifest.limits.max_seq_len,
            block_size=manifest.kv_cache.block_size,
            num_blocks=manifest.kv_cache.num_blocks,
            kv_kind=kind,
            # Where there are slots, each sequence with draft tokens takes a pass of its own.
            supports_draft_tokens=kind is KVKind.BLOCKS,
        )


@dataclass(frozen=True)
class StepBatch:
    """The chunks of S sequences, packed on one axis of T tokens, of which R rows of logits are wanted.

    Args:
        token_ids: `[T]`, the chunks one after another.
        position_ids: `[T]`, each token's position in its sequence.
        past_lens: `[S]`, the tokens of each sequence that are in the KV cache already.
        subsequence_begins: `[S + 1]`: the tokens of sequence `s` begin at index `subsequence_begins[s]` of the packed
            axis and end before index `subsequence_begins[s + 1]`.
        block_indices: `[N]`, the block tables one after another, each with the `ceil(tokens / block_size)` blocks that
            hold the sequence's cached and new tokens; with `KVKind.SLOTS` each is one slot.
        block_indices_begins: `[S + 1]`: the table of sequence `s` is
            `block_indices[block_indices_begins[s] : block_indices_begins[s + 1]]`.
        max_context_len: the most tokens of a sequence, cached and new.
        logit_rows: `[R]`, the indices on the packed axis whose logits are wanted, ascending.
        block_copies: `[C, 3]`: in each row the block to read, the block to write, and how many of its first positions
            are copied; the positions after them may be copied too. The copies are made in this order, before anything
            is computed.
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
    """A sequence's penalties, which an engine may keep between steps where its logits are.

    Two histories are the same only if they are the same object.
    """

    @property
    def num_output_tokens(self) -> int:
        """How many tokens of the output are counted."""
        ...

    def since(self, num_output_tokens: int) -> dict[int, float]:
        """Return the offsets of the tokens that were counted after the first `num_output_tokens`.

        Returns:
            by token id, what is subtracted from its logit because of all counted tokens.
        """
        ...


class RowPenalties(NamedTuple):
    """The changes that the tokens before a position make to its row of logits. No array holds a token twice.

    Args:
        repetition: divides the non-negative logits of `seen_ids` and multiplies the negative ones.
        seen_ids: `[n]`; empty where `repetition` is 1.
        counted_ids: `[m]`, all of them in `seen_ids` where `repetition` is not 1.
        offsets: `[m]`, subtracted from the logits of `counted_ids` after `repetition` was applied.
        history: the sequence's penalties; None where draft tokens are counted as output.
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
    """The logits of a step, `[R, V]`, in the memory of the engine's device.

    They are valid until the engine's next `submit` or `close`, and used by the thread that uses the engine. The result
    for a row depends on that row alone. `rows` holds indices from 0 to R - 1. They ascend and none comes twice, except
    in `read` and `write`. Only `find_ties`, `read` and `write` take an empty `rows`.

    Raises:
        EngineError: from every method, if the device fails.
    """

    @property
    def shape(self) -> tuple[int, int]:
        """R, the rows, and V, the size of the vocabulary."""
        ...

    def argmax(self, rows: Indices) -> tuple[TokenIds, FloatArray]:
        """Find the token with the largest logit in each row.

        Args:
            rows: `[n]`.

        Returns:
            token ids `[n]`, the lowest among equals, and their logits `[n]`. Where a row has NaN or +inf, the returned
            logit is NaN or +inf and the token id is any.
        """
        ...

    def chunk_exp_sums(
        self, rows: Indices, maxima: FloatArray, temperatures: Doubles, floors: FloatArray | None = None
    ) -> Doubles:
        """Sum the weights `exp((logit - maximum) / temperature)` over each chunk of the vocabulary.

        Args:
            rows: `[n]`; the sums of a row with NaN or +inf are undefined.
            maxima: `[n]`, the largest logit of each row, so that the largest weight is 1.
            temperatures: `[n]`, from 1e-30 to 1e30.
            floors: `[n]`, logits below which a token's weight is 0; None for no floor.

        Returns:
            `[n, ceil(V / CHUNK_WIDTH)]`.
        """
        ...

    def top_k(self, rows: Indices, count: int) -> tuple[FloatArray, TokenIds]:
        """Find the largest logits of each row and their token ids.

        Args:
            rows: `[n]`; the result for a row with NaN or +inf is undefined.
            count: how many, from 1 to V.

        Returns:
            logits and token ids `[n, count]`, the largest first. Which of several equal logits are returned, and in
            which order, is undefined.
        """
        ...

    def find_ties(self, rows: Indices, values: FloatArray, counts: TokenIds) -> list[TokenIds]:
        """Find the tokens of each row whose logit equals a value exactly.

        Args:
            rows: `[n]`.
            values: `[n]`, finite.
            counts: `[n]`, the most tokens wanted of each row, from 1.

        Returns:
            for each row its lowest such token ids, ascending.
        """
        ...

    def read(self, rows: Indices, ids: TokenIds) -> FloatArray:
        """Return the logits of pairs of a row and a token.

        Args:
            rows: of any shape, in any order.
            ids: token ids, of a shape that broadcasts with that of `rows`.

        Returns:
            logits of the broadcast shape.
        """
        ...

    def write(self, rows: Indices, ids: TokenIds, values: FloatArray) -> None:
        """Overwrite the logits of pairs of a row and a token.

        Args:
            rows: `[n]`, ascending; a row comes once for each of its tokens.
            ids: `[n]`, token ids; a pair that comes twice must have the same value both times.
            values: `[n]`, or `[]` for one value for all pairs.
        """
        ...

    def penalise(self, rows: Indices, penalties: cabc.Sequence[RowPenalties]) -> None:
        """Apply repetition, presence and frequency penalties, in single precision.

        Args:
            rows: `[n]`.
            penalties: `[n]`, of each row.
        """
        ...

    def apply_token_bitmask(self, rows: Indices, words: npt.NDArray[np.uint32]) -> None:
        """Set the logits of the tokens that a bitmask does not allow to -inf.

        Args:
            rows: `[n]`.
            words: `[n, ceil(V / 32)]`; token t is allowed if bit t % 32 (least significant first) of word t // 32 is 1.
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
            batch: the step. The engine may read its arrays until `collect` returns; nothing may write to them.

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
