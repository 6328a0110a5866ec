"""Where the schemas of a JSON schema are, and how each is called in an error.

Owns the walk through a schema and the JSON pointers of its parts. Never changes or judges one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

#: Keywords that hold one schema, a list of schemas, or an object that gives names to schemas. `items` may be a list.
SCHEMA_KEYWORDS = frozenset({
    "additionalItems", "additionalProperties", "contains", "else", "if", "items", "not", "propertyNames", "then",
    "unevaluatedItems", "unevaluatedProperties",
})  # fmt: skip
LIST_KEYWORDS = frozenset({"allOf", "anyOf", "oneOf", "prefixItems"})
MAP_KEYWORDS = frozenset({"properties", "patternProperties", "$defs", "definitions", "dependentSchemas"})
#: Maps that only keep schemas for references.
_STORES = frozenset({"$defs", "definitions"})
#: What these hold are values, however much they look like schemas.
_VALUE_KEYWORDS = frozenset({"const", "enum", "default", "examples"})
_MAX_POINTER = 200


@dataclass(frozen=True)
class Place:
    """A step of the way from the root of what the client sent to one of its parts; `str` gives a JSON pointer."""

    parent: Place | None = None
    key: str | int = ""

    def __truediv__(self, key: str | int) -> Place:
        return Place(self, key)

    def __str__(self) -> str:
        keys = []
        place: Place | None = self
        while place is not None and place.parent is not None:
            keys.append(str(place.key).replace("~", "~0").replace("/", "~1"))
            place = place.parent
        pointer = "/".join(["#", *reversed(keys)])
        return pointer if len(pointer) <= _MAX_POINTER else f"#...{pointer[-_MAX_POINTER:]}"


#: The whole of what the client sent.
ROOT = Place()


def all_nodes(schema: Any, root: Place) -> Iterator[tuple[Place, dict[str, Any]]]:
    """Yield everything that is a schema or may be referred to as one, with its place.

    That is every object, except for those that are values or that only give names to schemas. Yields an object before
    it looks into it, so the caller may change it.
    """
    pending: list[tuple[Place, Any, bool]] = [(root, schema, True)]
    while pending:
        place, node, is_schema = pending.pop()
        if isinstance(node, list):
            pending.extend((place / index, child, True) for index, child in enumerate(node))
        elif isinstance(node, dict):
            if is_schema:
                yield place, node
            for name, child in node.items():
                if not is_schema or name not in _VALUE_KEYWORDS:
                    pending.append((place / name, child, not is_schema or name not in MAP_KEYWORDS))


def used_nodes(schema: Any, root: Place) -> Iterator[tuple[Place, Any]]:
    """Yield every schema that the root schema uses, once, with its place; also what is no schema where one must be.

    Of what is only kept for references, what is referred to within the schema by a JSON pointer; a reference that leads
    nowhere, or that is of another kind, is left out.
    """
    pending = [(root, schema)]
    seen: set[int] = set()
    while pending:
        place, node = pending.pop()
        if id(node) in seen:
            continue
        if isinstance(node, dict):
            seen.add(id(node))
        yield place, node
        if not isinstance(node, dict):
            continue
        reference = node.get("$ref")
        if isinstance(reference, str) and (target := _referred(schema, root, reference)) is not None:
            pending.append(target)
        pending.extend(reversed([*children(place, node)]))


def children(place: Place, node: dict[str, Any]) -> Iterator[tuple[Place, Any]]:
    """Yield the schemas that a schema applies, and nothing that is of the wrong form."""
    for keyword, value in node.items():
        if keyword in SCHEMA_KEYWORDS and not (keyword == "items" and isinstance(value, list)):
            yield place / keyword, value
        elif (keyword in LIST_KEYWORDS or keyword == "items") and isinstance(value, list):
            yield from ((place / keyword / index, child) for index, child in enumerate(value))
        elif keyword in MAP_KEYWORDS - _STORES and isinstance(value, dict):
            yield from ((place / keyword / name, child) for name, child in value.items())


def _referred(schema: Any, root: Place, reference: str) -> tuple[Place, Any] | None:
    if reference != "#" and not reference.startswith("#/"):
        return None
    place, node = root, schema
    for part in unquote(reference).split("/")[1:]:
        key = part.replace("~1", "/").replace("~0", "~")
        if isinstance(node, dict) and key in node:
            place, node = place / key, node[key]
        elif isinstance(node, list) and key.isdecimal() and len(key) < _MAX_INDEX_DIGITS and int(key) < len(node):
            place, node = place / int(key), node[int(key)]
        else:
            return None
    return place, node


_MAX_INDEX_DIGITS = 9
