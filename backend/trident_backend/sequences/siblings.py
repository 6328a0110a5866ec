"""Sequences of one request, the first of which computes the prompt for all.

Owns the rules: who waits for its parent, who may take over its blocks, what is left to compute. Pure; never admits a
sequence and never touches a block.
"""

from __future__ import annotations

from trident_backend.sequences import prompt_scores
from trident_backend.sequences.sequence import Sequence


def waits_for_parent(sequence: Sequence) -> bool:
    """Whether its parent is still to compute the prompt.

    One that has run before does not wait: nobody's stream depends on another's.
    """
    parent = sequence.parent
    return (
        parent is not None
        and parent.finish_reason is None
        and parent.num_computed_tokens < parent.num_prompt_tokens
        and sequence.first_scheduled_at is None
    )


def shares_prompt(sequence: Sequence) -> bool:
    """Whether it takes over its parent's keys and values, of all the prompt but the last token, whose logits it wants.

    Only if its parent, which must be running, has them all, and only at its beginning.
    """
    parent = sequence.parent
    return (
        parent is not None
        and parent.num_computed_tokens >= parent.num_prompt_tokens
        and sequence.num_tokens == sequence.num_prompt_tokens
        and prompt_scores.max_cached_tokens(sequence) == sequence.num_tokens - 1
    )


def num_own_tokens(sequence: Sequence) -> int:
    """Tokens that it has to compute if its parent, should it have one, computes the prompt."""
    shared = 0 if sequence.parent is None else sequence.num_prompt_tokens - 1
    return sequence.num_tokens - shared
