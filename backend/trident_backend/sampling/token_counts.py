"""How often each token stands in one sequence.

Owns the counts, kept up as the sequence grows. Never changes a logit.
"""

from __future__ import annotations


class TokenCounts:
    """Of one sequence; to be written with the sampler."""
