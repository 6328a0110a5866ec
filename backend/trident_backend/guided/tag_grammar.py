"""Structural tags written in llguidance's language.

Owns where one terminal ends and another begins. llguidance's lexer is greedy, so neighbours that are regular become one
terminal, and free text ends lazily at the text that comes after it. Never reads JSON.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llguidance import regex_to_lark

from trident_backend.guided.added_tokens import AddedTokens
from trident_backend.guided.ebnf import escaped
from trident_backend.guided.json_schemas import CheckedSchema
from trident_backend.guided.tag_formats import TagFormatError
from trident_backend.guided.tag_nodes import (
    AnyText,
    Either,
    Json,
    Literal,
    Node,
    Pattern,
    Separated,
    Tagged,
    Triggered,
    texts_of,
)
from trident_backend.guided.tag_parts import Marker, Part, TagParts


@dataclass(frozen=True)
class TagGrammar:
    """The grammar of a structural tag.

    Args:
        rules: in llguidance's language, without a preamble.
        markers: indices of the tokens that are matched by id; as texts, the same tokens are not allowed.
        schemas: the schemas in it.
    """

    rules: str
    markers: frozenset[int]
    schemas: tuple[CheckedSchema, ...]


def write_tags(node: Node, added: AddedTokens) -> TagGrammar:
    """Write the grammar of a structural tag.

    Args:
        node: the tag, as it was read.
        added: the tokens that its texts may be.

    Raises:
        TagFormatError: it has no grammar that says the same; the message begins with its JSON pointer.
    """
    writer = _Writer(added, [text for text in texts_of(node) if text in added.indices])
    start = writer.run([node], follows_safely=True)
    return TagGrammar("\n".join([f"start: {start}", *writer.lines]), frozenset(writer.markers), tuple(writer.schemas))


class _Writer:
    """Writes the rules of one grammar.

    Args:
        added: the tokens that texts may be.
        whole: texts of the guide that are one added token.
    """

    def __init__(self, added: AddedTokens, whole: Sequence[str]) -> None:
        self.lines: list[str] = []
        #: A text that is one token means that token everywhere, and free text does not have it.
        self.markers = {added.indices[text] for text in whole}
        self.schemas: list[CheckedSchema] = []
        self._added = added
        self._whole = frozenset(whole)
        self._parts = TagParts(added, whole)
        self._free: dict[frozenset[str], str] = {}

    def run(self, nodes: Sequence[Part], *, follows_safely: bool) -> str:
        """Return the expression of parts one after another.

        Args:
            nodes: the parts.
            follows_safely: what comes after them is the end or a marker, so that it cannot be taken for free text.
        """
        parts = [part for node in nodes for part in self._parts.flat(node)]
        safe = self._parts.safe_places(parts, follows_safely)
        expressions: list[str] = []
        place = 0
        while place < len(parts):
            part = parts[place]
            end = place + 1
            if self._parts.is_regular(part):
                while end < len(parts) and self._parts.is_regular(parts[end]):
                    end += 1
                expressions.append(self._terminal(" ".join(map(self._regular, parts[place:end]))))
            elif isinstance(part, AnyText) and end < len(parts) and isinstance(until := parts[end], Literal):
                end += 1
                expressions.append(self._lazy(part.excludes, until.text))
            else:
                expressions.append(self._one(part, safe[end]))
            place = end
        return " ".join(expressions) or '""'

    def _one(self, part: Part, follows_safely: bool) -> str:
        if isinstance(part, Marker):
            index = self._added.indices[part.text]
            self.markers.add(index)
            return f"<[{index}]>"
        if isinstance(part, Json):
            self.schemas.append(part.schema)
            return self._rule(f"%json {part.schema.text()}")
        if isinstance(part, Either):
            options = [self.run([option], follows_safely=follows_safely) for option in part.options]
            return self._rule(" | ".join(options))
        if isinstance(part, Separated):
            return self._separated(part, follows_safely)
        if isinstance(part, AnyText | Triggered) and not follows_safely:
            raise TagFormatError(f"{part.path}: nothing tells where this free text ends; put a fixed text behind it")
        if isinstance(part, AnyText):
            return self._free_text(part.excludes)
        assert isinstance(part, Triggered)
        return self._triggered(part)

    def _separated(self, node: Separated, follows_safely: bool) -> str:
        separator = self._parts.split(node.separator)
        after = self._parts.safe_places(separator, True)[0] and follows_safely
        tags = self._rule(" | ".join(self.run([tag], follows_safely=after) for tag in node.tags))
        more = "" if node.stop_after_first else f" ({self.run(separator, follows_safely=False)} {tags})*"
        return f"({tags}{more}){'' if node.at_least_one else '?'}"

    def _triggered(self, node: Triggered) -> str:
        heads: dict[str, list[str]] = {trigger: [] for trigger in node.triggers}
        whole: list[str] = []
        follows_safely = node.stop_after_first
        for tag in node.tags:
            found = [trigger for trigger in heads if tag.begin.startswith(trigger)]
            if len(found) != 1:
                raise TagFormatError(f"{tag.path / 'begin'}: must begin with exactly one of the triggers")
            rest = self._rule(self.run([_without(tag, found[0])], follows_safely=follows_safely))
            heads[found[0]].append(rest)
            if node.at_least_one:
                whole.append(f"{self.run([Literal(found[0])], follows_safely=False)} {rest}")
        split = {trigger: self._parts.split(trigger) for trigger in heads}
        spelled = {trigger for trigger, parts in split.items() if isinstance(parts[0], Literal)}
        if mixed := next((trigger for trigger in spelled if len(split[trigger]) > 1), None):
            where = node.path / "triggers" / node.triggers.index(mixed)
            raise TagFormatError(f"{where}: has a special token behind other text")
        excludes = (*node.excludes, *sorted(spelled))
        free = self._free_text(excludes)
        calls = []
        for trigger, rests in heads.items():
            if not rests:
                continue
            if trigger in spelled:
                head = self._lazy(excludes, trigger)
            else:
                head = f"{free} {self.run(split[trigger], follows_safely=False)}"
            calls.append(f"{head} ({' | '.join(rests)})")
        call = self._rule(" | ".join(calls))
        first = self._rule(" | ".join(whole)) if whole else ""
        if node.stop_after_first:
            return first or f"({call} | {free})"
        return f"{first} {call}* {free}"

    def _free_text(self, excludes: Sequence[str]) -> str:
        """Return the terminal of text without some texts; markers among these are not text anyway."""
        texts = {text for text in excludes if text not in self._whole}
        key = frozenset(texts)
        if key not in self._free:
            none_of = "|".join(escaped(text) for text in sorted(texts))
            self._free[key] = self._terminal(f"/(?s:.*)/ & ~/(?s:.*)(?:{none_of})(?s:.*)/" if texts else "/(?s:.*)/")
        return self._free[key]

    def _lazy(self, excludes: Sequence[str], until: str) -> str:
        """Return the rule of free text that ends where a text is first met."""
        free = self._free_text([*excludes, until])
        self.lines.append(f"r{len(self.lines)}[lazy]: {free} /{escaped(until)}/")
        return f"r{len(self.lines) - 1}"

    def _regular(self, part: Part) -> str:
        """Return the expression of a regular part, for the inside of a terminal."""
        if isinstance(part, Literal):
            return f"/{escaped(part.text)}/"
        if isinstance(part, Pattern):
            # A terminal of its own, so that no expression reaches beyond itself.
            return self._terminal(f"/{regex_to_lark(part.regex, ASCII)}/")
        assert isinstance(part, Either)
        options = [" ".join(map(self._regular, self._parts.flat(option))) or '""' for option in part.options]
        return f"({' | '.join(options)})"

    def _rule(self, body: str) -> str:
        self.lines.append(f"r{len(self.lines)}: {body}")
        return f"r{len(self.lines) - 1}"

    def _terminal(self, body: str) -> str:
        self.lines.append(f"T{len(self.lines)}: {body}")
        return f"T{len(self.lines) - 1}"


def _without(tag: Tagged, trigger: str) -> Tagged:
    return Tagged(tag.begin.removeprefix(trigger), tag.content, tag.end, tag.path)


#: \d, \w and \s mean ASCII, as in JSON schemas.
ASCII = "dws"
