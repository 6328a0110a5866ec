"""One request on its way through the core, as plain state.

Owns nothing but its fields; says who writes them. Never schedules, computes or answers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from trident_backend.sequences.block_table import BlockTable
from trident_backend.sequences.choices import TokenLogProbs
from trident_backend.sequences.guide import Guide
from trident_backend.sequences.ngram_drafter import NgramDrafter
from trident_backend.sequences.sampling_params import SamplingParams
from trident_backend.sequences.stop_strings import StopStrings
from trident_backend.sequences.token_counts import TokenCounts
from trident_ensemble.contract.errors import TridentError


class FinishReason(str, Enum):
    """Why a sequence ended. For those that come with an error, clients get that instead."""

    EOS = "eos"
    #: A stop string, a stop id, or a guide that allows nothing more.
    STOP = "stop"
    LENGTH = "length"
    #: BuildRequest to stop, which is no error; or its client is gone.
    CANCELLED = "cancelled"
    #: Its timeout has passed.
    TIMEOUT = "timeout"
    #: There is no room for it, or no time.
    REFUSED = "refused"
    ERROR = "error"


@dataclass(eq=False)
class Sequence:
    """A prompt and what has been generated from it. Times are seconds of the scheduler's clock.

    The request fills the fields up to `guide`, the scheduler all others but `block_table` and `block_digests`, which
    are the block manager's, and `token_counts`, which is the sampler's.

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
        parent: the first sequence of its request, whose prompt it shares; None for that one itself.
        stop_ids: tokens that end the text because the request says so.
        stop_id_words: of these, those that the request names by their text, and that text.
        stop_strings: what it must not say; sees every token.
        include_stop: whether the token that ended it is text.
        guide: what it may say; sees every token.
        stop_reason: the stop string, or stop id, that ended it.
        num_hidden_tail_tokens: 1 if the last token is no text (it ended it), else 0.
        log_probs: of the output, token by token, if wanted.
        prompt_log_probs: of the prompt's tokens from the second on, if wanted.
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
    parent: Sequence | None = None
    stop_ids: frozenset[int] = frozenset()
    stop_id_words: Mapping[int, str] = field(default_factory=dict)
    stop_strings: StopStrings | None = None
    include_stop: bool = False
    guide: Guide | None = None
    num_computed_tokens: int = 0
    num_cached_tokens: int = 0
    num_preemptions: int = 0
    num_draft_tokens: int = 0
    num_accepted_tokens: int = 0
    first_scheduled_at: float | None = None
    first_token_at: float | None = None
    last_token_at: float | None = None
    lookup: NgramDrafter | None = None
    token_counts: TokenCounts | None = None
    log_probs: list[TokenLogProbs] = field(default_factory=list)
    prompt_log_probs: list[TokenLogProbs] = field(default_factory=list)
    block_table: BlockTable = field(default_factory=BlockTable)
    block_digests: list[bytes] = field(default_factory=list)
    paused: bool = False
    awaits_mask: bool = False
    finish_reason: FinishReason | None = None
    stop_reason: str = ""
    num_hidden_tail_tokens: int = 0
    error: TridentError | None = None

    @property
    def sits_out(self) -> bool:
        """Whether it takes no steps for now: its reader is behind, or the mask of its guide."""
        return self.paused or self.awaits_mask

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
