"""One request on its way through the core, as plain state.

Owns nothing but its fields; says who writes them. Never schedules, computes or answers.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum


class FinishReason(str, Enum):
    """Why a sequence ended, as clients read it."""

    EOS = "eos"
    LENGTH = "length"
    CANCELLED = "cancelled"
    ERROR = "error"


@dataclass(frozen=True)
class SamplingParams:
    """How the next token is chosen.

    Args:
        temperature: 0 is greedy.
        top_k: keep the k most likely tokens; 0 keeps all.
        top_p: keep the likeliest tokens that together reach this probability; 1 keeps all.
        seed: of this request's own random numbers, below 2**64.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0


@dataclass(eq=False)
class Sequence:
    """A prompt and what has been generated from it.

    The request fills the first six fields, the scheduler all others but `block_table`, which is the block manager's.
    """

    sequence_id: int
    token_ids: list[int]
    num_prompt_tokens: int
    max_tokens: int
    sampling: SamplingParams
    end_ids: frozenset[int]
    num_computed_tokens: int = 0
    block_table: list[int] = field(default_factory=list)
    paused: bool = False
    finish_reason: FinishReason | None = None

    @property
    def num_tokens(self) -> int:
        """Prompt and output so far."""
        return len(self.token_ids)

    @property
    def num_output_tokens(self) -> int:
        """Output so far."""
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def num_remaining_tokens(self) -> int:
        """Tokens not yet computed: 1 while generating, more while the prompt is being computed."""
        return len(self.token_ids) - self.num_computed_tokens

    @property
    def max_len(self) -> int:
        """The longest this sequence may become."""
        return self.num_prompt_tokens + self.max_tokens
