"""Chunks of a prompt whose tokens' log probabilities are wanted.

Owns which rows of logits score it. The row of each of its tokens but the last scores the next one, and each is scored
once; `Sequence.prompt_log_probs` says how far that has come. Pure; never computes a probability.
"""

from __future__ import annotations

from trident_backend.sequences.sequence import Sequence

#: Scored rows of one step, at most: a row is `vocab_size` floats, half a megabyte at 128k tokens, and the output
#: layer's product with so many rows keeps an engine busy.
MAX_ROWS = 64


def num_unscored(sequence: Sequence) -> int:
    """Return how many tokens of the prompt have a log probability that is wanted and not known yet."""
    if not sequence.sampling.prompt_log_probs:
        return 0
    return sequence.num_prompt_tokens - 1 - len(sequence.prompt_log_probs)


def max_cached_tokens(sequence: Sequence) -> int:
    """Return how many of the first tokens need not be computed if they are cached: those whose rows are not wanted."""
    return len(sequence.prompt_log_probs) if num_unscored(sequence) else sequence.num_tokens - 1


def chunk(sequence: Sequence, num_new_tokens: int, num_rows: int) -> tuple[int, int]:
    """Return how many of a sequence's next tokens to compute, and how many rows of these score the prompt.

    Args:
        sequence: with tokens that are not scored yet.
        num_new_tokens: the most to compute.
        num_rows: the most to score.
    """
    past, num_scored = sequence.num_computed_tokens, len(sequence.prompt_log_probs)
    assert past <= num_scored, "tokens were computed or found, but not scored"
    if past < num_scored:
        # Computed again after a preemption; the scored rows are a chunk's first.
        return min(num_new_tokens, num_scored - past), 0
    unscored = num_unscored(sequence)
    num_rows = min(num_new_tokens, num_rows, unscored)
    return (num_new_tokens if num_rows == unscored else num_rows), num_rows
