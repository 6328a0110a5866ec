"""The added tokens of a tokenizer, which a grammar may ask for by their ids.

Owns where they stand in a text. Never knows what a text is for.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import cached_property


@dataclass(frozen=True)
class AddedTokens:
    """The tokens that a tokenizer has beside those it has learnt.

    Args:
        indices: text -> the index under which llguidance has the token as a marker, not as a text.
        special: those that are special.
    """

    indices: Mapping[str, int] = field(default_factory=dict)
    special: frozenset[str] = frozenset()

    @cached_property
    def special_pattern(self) -> re.Pattern[str] | None:
        """Finds a special token in a text."""
        return finder(self.special)


def finder(texts: Collection[str]) -> re.Pattern[str] | None:
    """Return what finds any of some texts, the longest first; None for none."""
    longest_first = sorted(set(texts), key=lambda text: (-len(text), text))
    return re.compile("|".join(map(re.escape, longest_first))) if longest_first else None
