"""What one step computes and what came of it, as plain values.

Owns no decision: the scheduler makes them, everybody else reads them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from trident_backend.sequences.sequence import Sequence
from trident_backend.sequences.step_time import StepSize
from trident_ensemble.contract.errors import EngineError


class Row(NamedTuple):
    """One row of a step's logits: it chooses, or scores, one token.

    Args:
        sequence: whose.
        position: of the token in the sequence; it is scored where the sequence has a token already, else chosen.
        draft_ids: guessed tokens between the sequence's last and this position.
    """

    sequence: Sequence
    position: int
    draft_ids: tuple[int, ...] = ()

    @property
    def is_scored(self) -> bool:
        """Whether the token is known, and only its probability is wanted."""
        return self.position < len(self.sequence.token_ids)


class ScheduledChunk(NamedTuple):
    """The next uncomputed tokens of a sequence, and guesses of those after them.

    Args:
        sequence: whose.
        num_new_tokens: of its own tokens, from the first uncomputed one on.
        completes: whether none of its own remain, so that it gets a token from this step.
        draft_ids: guessed tokens, computed after its own to be verified; only where the chunk completes.
        num_scored: tokens of the prompt, the first of them right after the chunk's first, whose probability is wanted.
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
    """One step.

    Args:
        chunks: what it computes.
        size: how much that is.
        num_context_tokens: of its tokens, those of prompts; and of outputs that are computed again.
        preempted: sequences that had to give up their room for it.
        block_copies: what is copied before it computes, in this order.
    """

    chunks: tuple[ScheduledChunk, ...]
    size: StepSize
    num_context_tokens: int = 0
    preempted: tuple[Sequence, ...] = ()
    block_copies: tuple[BlockCopy, ...] = ()

    @cached_property
    def rows(self) -> tuple[Row, ...]:
        """Each wanted row of logits, chunk by chunk: first those that score a prompt, then those that choose."""
        rows: list[Row] = []
        for sequence, num_new_tokens, completes, draft_ids, num_scored in self.chunks:
            if num_scored:
                start = sequence.num_computed_tokens + 1
                rows.extend(Row(sequence, position) for position in range(start, start + num_scored))
            if completes:
                end = sequence.num_computed_tokens + num_new_tokens
                rows.append(Row(sequence, end))
                if draft_ids:
                    rows.extend(Row(sequence, end + index, draft_ids[:index]) for index in range(1, 1 + len(draft_ids)))
        return tuple(rows)

    @property
    def num_tokens(self) -> int:
        """Tokens the step computes."""
        return self.size.num_tokens


class Advance(NamedTuple):
    """A sequence has `num_tokens` more tokens, `seconds` after those before; None for its first."""

    sequence: Sequence
    num_tokens: int
    seconds: float | None


@dataclass(frozen=True)
class StepResult:
    """What one step did, who got tokens, how long it took in seconds, and the engine's failure, if it failed.

    The failure's text is for the log: it may say more of the machine than a client is to read.

    Args:
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
