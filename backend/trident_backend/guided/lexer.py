"""The automaton that matchers of one grammar share.

Owns the matcher that others are copied from, and the memory that was taken for them. Never decides how large it may be.
"""

from __future__ import annotations

from llguidance import LLMatcher

from trident_backend.guided.memory import Share


class Lexer:
    """The automaton that the matchers of a grammar share, and what they are copied from.

    Args:
        matcher: at the beginning of the grammar.
        max_states: how large the automaton may become.
        share: the memory for it; whoever holds a copy of the matcher holds this object too.
    """

    def __init__(self, matcher: LLMatcher, max_states: int, share: Share) -> None:
        self.matcher = matcher
        self.max_states = max_states
        self.share = share
        self.num_copies = 0

    def copy(self) -> LLMatcher:
        """Return a matcher at the beginning of the grammar."""
        self.num_copies += 1
        return self.matcher.deep_copy()
