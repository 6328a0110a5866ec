"""The schemas inside a JSON schema, and the JSON pointers by which errors name them.

Owns the walk through a schema. Never changes or checks one.
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
#: Maps whose schemas are used through references only.
_STORES = frozenset({"$defs", "definitions"})
#: Keywords that hold values, however much these look like schemas.
_VALUE_KEYWORDS = frozenset({"const", "enum", "default", "examples"})
_MAX_POINTER = 200


@dataclass(frozen=True)
class SchemaPath:
    """The path from the root of the JSON that the client sent to one of its parts; `str` gives a JSON pointer.

    Args:
        parent: the path of the enclosing part; None for the root.
        key: the name or index of the part within its parent.
    """

    parent: SchemaPath | None = None
    key: str | int = ""

    def __truediv__(self, key: str | int) -> SchemaPath:
        return SchemaPath(self, key)

    def __str__(self) -> str:
        keys = []
        path: SchemaPath | None = self
        while path is not None and path.parent is not None:
            keys.append(str(path.key).replace("~", "~0").replace("/", "~1"))
            path = path.parent
        pointer = "/".join(["#", *reversed(keys)])
        return pointer if len(pointer) <= _MAX_POINTER else f"#...{pointer[-_MAX_POINTER:]}"


#: The path of everything that the client sent.
ROOT = SchemaPath()


def all_nodes(schema: Any, root: SchemaPath) -> Iterator[tuple[SchemaPath, dict[str, Any]]]:
    """Yield every object that is a schema or may be referred to as one, with its path.

    Objects that are values, or that only give names to schemas, are left out. An object is yielded before its parts are
    visited, so the caller may change it.
    """
    pending: list[tuple[SchemaPath, Any, bool]] = [(root, schema, True)]
    while pending:
        path, node, is_schema = pending.pop()
        if isinstance(node, list):
            pending.extend((path / index, child, True) for index, child in enumerate(node))
        elif isinstance(node, dict):
            if is_schema:
                yield path, node
            for name, child in node.items():
                if not is_schema or name not in _VALUE_KEYWORDS:
                    pending.append((path / name, child, not is_schema or name not in MAP_KEYWORDS))


def used_nodes(schema: Any, root: SchemaPath) -> Iterator[tuple[SchemaPath, Any]]:
    """Yield every schema that the root schema uses, once, with its path.

    A value that is not a schema where one must be is yielded as well. Of `$defs` and `definitions` only the schemas are
    yielded that a JSON pointer within the schema refers to; a reference that leads nowhere, or is of another kind, is
    left out.
    """
    pending = [(root, schema)]
    seen: set[int] = set()
    while pending:
        path, node = pending.pop()
        if id(node) in seen:
            continue
        if isinstance(node, dict):
            seen.add(id(node))
        yield path, node
        if not isinstance(node, dict):
            continue
        reference = node.get("$ref")
        if isinstance(reference, str) and (target := _referred(schema, root, reference)) is not None:
            pending.append(target)
        pending.extend(reversed([*children(path, node)]))


def children(path: SchemaPath, node: dict[str, Any]) -> Iterator[tuple[SchemaPath, Any]]:
    """Yield the schemas that one schema applies, with their paths; values of the wrong form are left out."""
    for keyword, value in node.items():
        if keyword in SCHEMA_KEYWORDS and not (keyword == "items" and isinstance(value, list)):
            yield path / keyword, value
        elif (keyword in LIST_KEYWORDS or keyword == "items") and isinstance(value, list):
            yield from ((path / keyword / index, child) for index, child in enumerate(value))
        elif keyword in MAP_KEYWORDS - _STORES and isinstance(value, dict):
            yield from ((path / keyword / name, child) for name, child in value.items())


def _referred(schema: Any, root: SchemaPath, reference: str) -> tuple[SchemaPath, Any] | None:
    if reference != "#" and not reference.startswith("#/"):
        return None
    path, node = root, schema
    for part in unquote(reference).split("/")[1:]:
        key = part.replace("~1", "/").replace("~0", "~")
        if isinstance(node, dict) and key in node:
            path, node = path / key, node[key]
        elif isinstance(node, list) and key.isdecimal() and len(key) < _MAX_INDEX_DIGITS and int(key) < len(node):
            path, node = path / int(key), node[int(key)]
        else:
            return None
    return path, node


_MAX_INDEX_DIGITS = 9
