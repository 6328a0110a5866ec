"""The sequences of one request, the first of which computes the prompt for all.

Owns the rules: which one waits for its parent, which one may share its blocks, what is left to compute. Pure; never
admits a sequence and never touches a block.
"""

from __future__ import annotations

from trident_backend.sequences import prompt_scores
from trident_backend.sequences.sequence import Sequence


def waits_for_parent(sequence: Sequence) -> bool:
    """Return whether a sequence must wait until its parent has computed the prompt.

    One that has run before does not wait, so that no stream depends on another.
    """
    parent = sequence.parent
    return (
        parent is not None
        and parent.finish_reason is None
        and parent.num_computed_tokens < parent.num_prompt_tokens
        and sequence.first_scheduled_at is None
    )


def shares_prompt(sequence: Sequence) -> bool:
    """Return whether a sequence shares its parent's keys and values of the prompt but for the last token.

    The last token's logits are what it begins with. It shares only as long as it has no output, and only if its parent,
    which must be running, has computed the whole prompt.
    """
    parent = sequence.parent
    return (
        parent is not None
        and parent.num_computed_tokens >= parent.num_prompt_tokens
        and sequence.num_tokens == sequence.num_prompt_tokens
        and prompt_scores.max_cached_tokens(sequence) == sequence.num_tokens - 1
    )


def num_own_tokens(sequence: Sequence) -> int:
    """Return how many tokens a sequence has to compute if its parent, should it have one, computes the prompt."""
    shared = 0 if sequence.parent is None else sequence.num_prompt_tokens - 1
    return sequence.num_tokens - shared
