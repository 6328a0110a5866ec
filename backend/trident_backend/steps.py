"""What one step computes and what came of it, as plain values.

Owns no decision: the scheduler makes them, everybody else reads them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from trident_backend.sequence import Sequence
from trident_backend.step_time import StepSize


class ScheduledChunk(NamedTuple):
    """The next uncomputed tokens of a sequence, and guesses of those after them.

    Args:
        sequence: whose.
        num_new_tokens: of its own tokens, from the first uncomputed one on.
        completes: whether none of its own remain, so that it gets a token from this step.
        draft_ids: guessed tokens, computed after its own to be verified; only where the chunk completes.
    """

    sequence: Sequence
    num_new_tokens: int
    completes: bool
    draft_ids: tuple[int, ...] = ()


@dataclass(frozen=True)
class SchedulerOutput:
    """One step.

    Args:
        chunks: what it computes.
        size: how much that is.
        num_context_tokens: of its tokens, those of prompts; and of outputs that are computed again.
        preempted: sequences that had to give up their room for it.
    """

    chunks: tuple[ScheduledChunk, ...]
    size: StepSize
    num_context_tokens: int = 0
    preempted: tuple[Sequence, ...] = ()

    @cached_property
    def rows(self) -> tuple[tuple[Sequence, int], ...]:
        """Each wanted row of logits: its sequence, and the place in it of the token that the row chooses."""
        return tuple(
            (chunk.sequence, len(chunk.sequence.token_ids) + offset)
            for chunk in self.chunks
            if chunk.completes
            for offset in range(1 + len(chunk.draft_ids))
        )

    @property
    def num_tokens(self) -> int:
        """Tokens the step computes."""
        return self.size.num_tokens


class Advance(NamedTuple):
    """A sequence has `num_tokens` more tokens, `seconds` after those before; None for its first."""

    sequence: Sequence
    num_tokens: int
    seconds: float | None
