"""The parts of a structural tag, one after another.

Owns which texts are matched by the ids of tokens, which parts are regular, and what cannot be taken for free text.
Never writes a grammar.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from trident_backend.guided.added_tokens import AddedTokens, finder
from trident_backend.guided.tag_nodes import Either, Literal, Node, Pattern, Run, Separated, Tagged


@dataclass(frozen=True)
class Marker:
    """A token that is matched by its id."""

    text: str


#: What a run consists of when its texts have been split at the markers.
Part: TypeAlias = Node | Marker


class TagParts:
    """The way in which the tags of one guide are taken apart.

    Args:
        added: the tokens that texts may be.
        whole: texts of the guide that are one added token.
    """

    def __init__(self, added: AddedTokens, whole: Sequence[str]) -> None:
        self._patterns = [pattern for pattern in (finder(whole), added.special_pattern) if pattern is not None]

    def flat(self, node: Part) -> Iterator[Part]:
        """Yield the parts of a node, its texts split at markers."""
        if isinstance(node, Run):
            for part in node.parts:
                yield from self.flat(part)
        elif isinstance(node, Tagged):
            yield from self.split(node.begin)
            yield from self.flat(node.content)
            yield from self.split(node.end)
        elif isinstance(node, Literal):
            yield from self.split(node.text)
        else:
            yield node

    def split(self, text: str) -> list[Part]:
        """Split a text at the tokens that are matched by id."""
        parts: list[Part] = [Literal(text)] if text else []
        for pattern in self._patterns:
            parts = [piece for part in parts for piece in _pieces(part, pattern)]
        return parts

    def is_regular(self, part: Part) -> bool:
        """Return whether a part is one regular expression."""
        if isinstance(part, Either):
            return all(self.is_regular(inner) for option in part.options for inner in self.flat(option))
        return isinstance(part, Literal | Pattern)

    def safe_places(self, parts: Sequence[Part], follows_safely: bool) -> list[bool]:
        """Return for each place of a run, its end included, whether what begins there cannot be taken for free text.

        A marker cannot, nor can the end.
        """
        safe = [follows_safely]
        for part in reversed(parts):
            after = safe[-1]
            if isinstance(part, Either | Separated):
                options = part.options if isinstance(part, Either) else part.tags
                may_lack = isinstance(part, Separated) and not part.at_least_one
                begins = (self.safe_places([*self.flat(option)], after)[0] for option in options)
                safe.append((after or not may_lack) and all(begins))
            else:
                safe.append(isinstance(part, Marker))
        return safe[::-1]


def _pieces(part: Part, pattern: re.Pattern[str]) -> Iterator[Part]:
    if not isinstance(part, Literal):
        yield part
        return
    place = 0
    for found in pattern.finditer(part.text):
        if found.start() > place:
            yield Literal(part.text[place : found.start()])
        yield Marker(found.group())
        place = found.end()
    if place < len(part.text):
        yield Literal(part.text[place:])
