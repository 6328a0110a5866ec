"""One request on its way through the core, as plain state.

Owns nothing but its fields; says who writes them. Never schedules, computes or answers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import Enum

from trident_backend.prompt_lookup import PromptLookup
from trident_ensemble.errors import TridentError


class FinishReason(str, Enum):
    """Why a sequence ended. Clients read the first two; for the others they get an error."""

    EOS = "eos"
    LENGTH = "length"
    CANCELLED = "cancelled"
    #: Its timeout has passed.
    TIMEOUT = "timeout"
    #: There is no room for it, or no time.
    REFUSED = "refused"
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
    """A prompt and what has been generated from it. Times are seconds of the scheduler's clock.

    The request fills the fields up to `reuse_cache`, the scheduler all others but `block_table` and `block_digests`,
    which are the block manager's.

    Args:
        sequence_id: the core's own number for it.
        token_ids: the prompt; the output is appended to it.
        num_prompt_tokens: length of the prompt.
        max_tokens: the most tokens to generate.
        sampling: how a token is chosen.
        end_ids: tokens that end the text.
        arrived_at: when the request came.
        deadline: when it must have ended.
        priority: lower goes first, among the requests of a tenant.
        tenant: whose request it is; tenants share the engine fairly.
        cache_salt: cached blocks are shared among requests of one salt alone.
        reuse_cache: whether it may read cached blocks of others and leave its own.
    """

    sequence_id: int
    token_ids: list[int]
    num_prompt_tokens: int
    max_tokens: int
    sampling: SamplingParams
    end_ids: frozenset[int]
    arrived_at: float = 0.0
    deadline: float = math.inf
    priority: int = 0
    tenant: str = ""
    cache_salt: str = ""
    reuse_cache: bool = True
    num_computed_tokens: int = 0
    num_cached_tokens: int = 0
    num_preemptions: int = 0
    num_draft_tokens: int = 0
    num_accepted_tokens: int = 0
    first_scheduled_at: float | None = None
    first_token_at: float | None = None
    last_token_at: float | None = None
    lookup: PromptLookup | None = None
    block_table: list[int] = field(default_factory=list)
    block_digests: list[bytes] = field(default_factory=list)
    paused: bool = False
    finish_reason: FinishReason | None = None
    error: TridentError | None = None

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
