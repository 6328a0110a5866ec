"""What one step computes and what it resulted in, as plain values.

Owns their meaning. Never decides: the scheduler does, and all others read.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from trident_backend.sequences.sequence import Sequence
from trident_backend.sequences.step_time import StepSize
from trident_ensemble.contract.errors import EngineError

#: Makes a NamedTuple of all its fields in half the time of its own constructor; a step makes hundreds of them.
new_tuple = tuple.__new__


class Row(NamedTuple):
    """One row of a step's logits: it chooses, or scores, one token.

    Args:
        sequence: whose token it is.
        position: of the token in the sequence; it is scored where the sequence has a token already, else chosen.
        draft_ids: draft tokens between the sequence's last token and this position.
    """

    sequence: Sequence
    position: int
    draft_ids: tuple[int, ...] = ()

    @property
    def is_scored(self) -> bool:
        """Whether the token is known, and only its probability is wanted."""
        return self.position < len(self.sequence.token_ids)


class ScheduledChunk(NamedTuple):
    """The next tokens of a sequence that are computed, and draft tokens after them.

    Args:
        sequence: whose tokens they are.
        num_new_tokens: how many of its own tokens, from the first uncomputed one on.
        completes: whether none of its own remain, so that it gets a token from this step.
        draft_ids: draft tokens, computed after its own to be verified; only where the chunk completes.
        num_scored: tokens of the prompt whose log probability is wanted, from the one after the chunk's first on.
    """

    sequence: Sequence
    num_new_tokens: int
    completes: bool
    draft_ids: tuple[int, ...] = ()
    num_scored: int = 0


class BlockCopy(NamedTuple):
    """The first tokens of one KV block, or slot, that are copied to another before a step computes.

    Args:
        source: the block that is read.
        target: the block that is written.
        num_tokens: how many tokens, from the block's first on; what lies behind them may be copied too.
    """

    source: int
    target: int
    num_tokens: int


@dataclass(frozen=True)
class SchedulerOutput:
    """The work of one step, as the scheduler decided it.

    Args:
        chunks: what it computes.
        size: how much that is.
        num_context_tokens: how many of its tokens are of prompts, or of outputs that are computed again.
        preempted: sequences that lost their room in the cache for it.
        block_copies: what is copied before it computes, in this order.
    """

    chunks: tuple[ScheduledChunk, ...]
    size: StepSize
    num_context_tokens: int = 0
    preempted: tuple[Sequence, ...] = ()
    block_copies: tuple[BlockCopy, ...] = ()

    @cached_property
    def rows(self) -> tuple[Row, ...]:
        """The wanted rows of logits, chunk by chunk: first those that score a prompt, then those that choose."""
        rows: list[Row] = []
        for sequence, num_new_tokens, completes, draft_ids, num_scored in self.chunks:
            if num_scored:
                start = sequence.num_computed_tokens + 1
                rows.extend(Row(sequence, position) for position in range(start, start + num_scored))
            if completes:
                end = sequence.num_computed_tokens + num_new_tokens
                rows.append(new_tuple(Row, (sequence, end, ())))
                if draft_ids:
                    rows.extend(Row(sequence, end + index, draft_ids[:index]) for index in range(1, 1 + len(draft_ids)))
        return tuple(rows)

    @property
    def num_tokens(self) -> int:
        """Tokens the step computes."""
        return self.size.num_tokens


class Advance(NamedTuple):
    """New tokens of one sequence.

    Args:
        sequence: at the end of whose `token_ids` they are.
        num_tokens: how many.
        seconds: time since its tokens before; None for its first.
    """

    sequence: Sequence
    num_tokens: int
    seconds: float | None


@dataclass(frozen=True)
class StepResult:
    """The outcome of one step.

    Args:
        output: what it was to compute.
        advances: the sequences that got tokens.
        seconds: how long it took.
        error: the engine's failure, None if it did not fail. Its text is for the log: it may say more of the machine
            than a client is to read.
        awaits_masks: nothing was computed, but will be when a late mask is there: the next step must come soon.
    """

    output: SchedulerOutput
    advances: tuple[Advance, ...] = ()
    seconds: float = 0.0
    error: EngineError | None = None
    awaits_masks: bool = False

    @property
    def is_idle(self) -> bool:
        """Whether nothing can be computed before something is asked or a deadline passes."""
        return not self.output.chunks and not self.awaits_masks
