"""One sequence on its way through the core, as plain state.

Owns its fields and says who writes each. Never schedules, computes or answers.
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
    """The reasons why a sequence ends. The client of a sequence that has an error gets the error instead."""

    EOS = "eos"
    #: A stop string, a stop id, or a guide that allows nothing more.
    STOP = "stop"
    LENGTH = "length"
    #: Asked to stop, which is not an error; or its client is gone.
    CANCELLED = "cancelled"
    #: Its timeout has passed.
    TIMEOUT = "timeout"
    #: There is no room for it, or no time.
    REFUSED = "refused"
    ERROR = "error"


class _WeaklyReferenced:
    """Lets a class with slots be the target of weak references."""

    __slots__ = ("__weakref__",)


@dataclass(eq=False, slots=True)
class Sequence(_WeaklyReferenced):
    """A prompt and what has been generated from it. Times are seconds of the scheduler's clock.

    The engine loop's thread owns a sequence from the time when it is queued; until then its request does. Each field
    has one writer, by which they are grouped.

    Args:
        sequence_id: the core's own number for it.
        token_ids: the prompt; the scheduler appends the output.
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
        stop_id_words: the text of those stop ids that the request names by their text.
        stop_strings: the stop strings' matcher, which is shown every token; None if there are none.
        include_stop: whether the token that ended the text is part of it.
        guide: the grammar's matcher, which is shown every token; None if the output is free. Where the grammar is
            compiled after the request was read, it is set before the sequence is queued.
        num_computed_tokens: how many tokens, from the first on, have keys and values in the cache.
        num_cached_tokens: how many of these were found in the cache when the sequence first ran.
        num_preemptions: how often it lost its room in the cache.
        first_scheduled_at: when it first got room in the cache; None before.
        first_token_at: when its first token came; None before.
        last_token_at: when its latest token came; None before the first.
        log_probs: of the output, token by token; empty if not wanted.
        prompt_log_probs: of the prompt's tokens from the second on, as far as they are known; empty if not wanted.
        awaits_mask: whether it takes no steps because the mask of its guide is late.
        finish_reason: why it ended; None while it has not.
        stop_reason: the stop string, or the stop id in digits, that ended it; else empty.
        num_hidden_tail_tokens: 1 if the last token ended the text and is not part of it, else 0.
        error: what its client is told instead of the finish reason; None if nothing failed.
        drafter: proposes draft tokens; None where none are wanted, and once it has ended.
        num_draft_tokens: draft tokens computed for it.
        num_accepted_tokens: how many of these were accepted.
        block_table: the KV blocks that hold its tokens, first to last.
        block_digests: of its first full blocks, as many as have been asked for.
        num_allocated_tokens: tokens that may be written to its blocks as they are; beyond, the cache must `grow`.
        next_commit: the `num_computed_tokens` from which on the cache has something new to `commit`.
        token_counts: its tokens in the form that penalties need; None before the first penalty.
        paused: whether it takes no steps because its reader is behind.
    """

    # The request.
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

    # The scheduler, with what a step has chosen (`outcomes`).
    num_computed_tokens: int = 0
    num_cached_tokens: int = 0
    num_preemptions: int = 0
    first_scheduled_at: float | None = None
    first_token_at: float | None = None
    last_token_at: float | None = None
    log_probs: list[TokenLogProbs] = field(default_factory=list)
    prompt_log_probs: list[TokenLogProbs] = field(default_factory=list)
    awaits_mask: bool = False
    finish_reason: FinishReason | None = None
    stop_reason: str = ""
    num_hidden_tail_tokens: int = 0
    error: TridentError | None = None

    # Speculation, as a part of the scheduler.
    drafter: NgramDrafter | None = None
    num_draft_tokens: int = 0
    num_accepted_tokens: int = 0

    # The KV cache.
    block_table: BlockTable = field(default_factory=BlockTable)
    block_digests: list[bytes] = field(default_factory=list)
    num_allocated_tokens: int = 0
    next_commit: int = 0

    # The sampler.
    token_counts: TokenCounts | None = None

    # The engine loop, on behalf of the threads that answer.
    paused: bool = False

    @property
    def sits_out(self) -> bool:
        """Whether it takes no steps for now, because its reader or the mask of its guide is behind."""
        return self.paused or self.awaits_mask

    @property
    def num_tokens(self) -> int:
        """The length of prompt and output so far."""
        return len(self.token_ids)

    @property
    def num_output_tokens(self) -> int:
        """The length of the output so far."""
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def num_remaining_tokens(self) -> int:
        """Tokens not computed yet: 1 while the sequence generates, more while its prompt is being computed."""
        return len(self.token_ids) - self.num_computed_tokens

    @property
    def max_len(self) -> int:
        """The longest this sequence may become."""
        return self.num_prompt_tokens + self.max_tokens
