"""The parts of a structural tag, once it has been read.

Owns the kinds of parts. Never reads or writes anything.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

from trident_backend.guided.json_schemas import CheckedSchema
from trident_backend.guided.schema_paths import SchemaPath


@dataclass(frozen=True)
class AnyText:
    """Any text without the excluded ones."""

    excludes: tuple[str, ...]
    path: SchemaPath


@dataclass(frozen=True)
class Literal:
    """A text as it stands."""

    text: str


@dataclass(frozen=True)
class Json:
    """JSON that is valid under a schema."""

    schema: CheckedSchema


@dataclass(frozen=True)
class Pattern:
    """A text that a regular expression matches as a whole."""

    regex: str
    path: SchemaPath


@dataclass(frozen=True)
class Run:
    """Parts one after another."""

    parts: tuple[Node, ...]


@dataclass(frozen=True)
class Either:
    """One of several options; an empty `Run` among them means that there may be nothing."""

    options: tuple[Node, ...]


@dataclass(frozen=True)
class Tagged:
    """A tag: its content between two texts."""

    begin: str
    content: Node
    end: str
    path: SchemaPath


@dataclass(frozen=True)
class Triggered:
    """Free text, in which each trigger begins a tag.

    Args:
        triggers: the texts; each tag begins with exactly one of them.
        tags: the tags, in whose beginnings the triggers are.
        excludes: further texts that the free text does not have.
        at_least_one: a tag comes first, without text before it.
        stop_after_first: nothing comes after a tag.
        path: where this is in the guide.
    """

    triggers: tuple[str, ...]
    tags: tuple[Tagged, ...]
    excludes: tuple[str, ...]
    at_least_one: bool
    stop_after_first: bool
    path: SchemaPath


@dataclass(frozen=True)
class Separated:
    """Tags with a text between any two of them; the flags are those of `Triggered`."""

    tags: tuple[Tagged, ...]
    separator: str
    at_least_one: bool
    stop_after_first: bool


Node: TypeAlias = AnyText | Literal | Json | Pattern | Run | Either | Tagged | Triggered | Separated


def texts_of(node: Node) -> Iterator[str]:
    """Yield every text of a guide that may be one token."""
    if isinstance(node, Literal):
        yield node.text
    elif isinstance(node, AnyText):
        yield from node.excludes
    elif isinstance(node, Run | Either):
        for part in node.parts if isinstance(node, Run) else node.options:
            yield from texts_of(part)
    elif isinstance(node, Tagged):
        yield node.begin
        yield node.end
        yield from texts_of(node.content)
    elif isinstance(node, Triggered):
        yield from node.triggers
        yield from node.excludes
        for tag in node.tags:
            yield from texts_of(tag)
    elif isinstance(node, Separated):
        yield node.separator
        for tag in node.tags:
            yield from texts_of(tag)
