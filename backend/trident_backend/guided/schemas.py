"""JSON schemas, before llguidance reads them.

Owns what is refused or narrowed here because llguidance 1.9 would allow too much, or build without a bound. Narrowed
means fewer outputs, and all of them valid. Never decides what a schema means otherwise.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import Any


class SchemaError(Exception):
    """The schema cannot be followed; says why."""


def checked_schema(schema: dict[str, Any]) -> str:
    """A schema as JSON text for llguidance.

    Args:
        schema: narrowed in place.

    Raises:
        SchemaError: a part of it cannot be followed.
    """
    common = 1
    for node in _nodes(schema):
        for exclusive, inclusive, choose in (
            ("exclusiveMinimum", "minimum", max),
            ("exclusiveMaximum", "maximum", min),
        ):
            if node.get("type") != "integer" and _is_number(node.get(exclusive)):
                bound = _inside(node.pop(exclusive), is_lower=choose is max)
                node[inclusive] = choose(node[inclusive], bound) if _is_number(node.get(inclusive)) else bound
        common = math.lcm(common, _digits(node.get("multipleOf", 1)))
        if common > _MAX_MULTIPLE:
            raise SchemaError(
                f"multipleOf: {node['multipleOf']} is too large, alone or with others: at most {_MAX_MULTIPLE}"
            )
        _check_names(node)
        if (count := _optional(node)) > _MAX_OPTIONAL:
            raise SchemaError(
                f"properties: {count} names in one place that are not required are too many: at most {_MAX_OPTIONAL}"
            )
    schema["x-guidance"] = {"whitespace_pattern": _BLANKS}
    return json.dumps(schema)


def _nodes(schema: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Everything that is or may be referred to as a schema: all objects but those that are values, or name schemas."""
    pending: list[tuple[Any, bool]] = [(schema, True)]
    while pending:
        node, is_schema = pending.pop()
        if isinstance(node, list):
            pending.extend((child, True) for child in node)
        elif isinstance(node, dict) and is_schema:
            yield node
            pending.extend((child, name not in _MAPS) for name, child in node.items() if name not in _VALUES)
        elif isinstance(node, dict):
            pending.extend((child, True) for child in node.values())


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _inside(bound: float, *, is_lower: bool) -> float:
    """A number a little inside of an exclusive bound: llguidance 1.9 takes some of them for inclusive."""
    exact = Decimal(repr(bound))
    step = max(abs(exact), Decimal(1)) * _STEP
    return float(exact + step if is_lower else exact - step)


def _digits(multiple: Any) -> int:
    """Multiples of n are found by an automaton of n states, but for n's powers of ten; it is built at once."""
    if not _is_number(multiple) or multiple <= 0:
        return 1
    return int("".join(map(str, Decimal(repr(multiple)).normalize().as_tuple().digits)))


def _check_names(node: Mapping[str, Any]) -> None:
    """Of additional names nobody remembers which have been written.

    So they may be written twice, and llguidance 1.9 takes a name of `properties` that JSON writes with an escape for an
    additional one.
    """
    if node.get("additionalProperties") is False and "patternProperties" not in node:
        return
    names = node.get("properties")
    for name in names if isinstance(names, dict) else ():
        if any(character < " " or character in '"\\\x7f' for character in name):
            raise SchemaError(f"properties: {name!r} {_CLOSED}")
    if _is_number(node.get("minProperties")) and node["minProperties"] > 1:
        raise SchemaError(f"minProperties: more than 1 {_CLOSED}")


def _optional(node: Any) -> int:
    """Names that may come first in an object, or after any other: the parser keeps them all open at once."""
    if not isinstance(node, dict):
        return 0
    names, required = node.get("properties"), node.get("required")
    needed = {name for name in required if isinstance(name, str)} if isinstance(required, list) else set()
    num_own = len(names.keys() - needed) if isinstance(names, dict) else 0
    parts = (node[keyword] for keyword in ("allOf", "anyOf", "oneOf") if isinstance(node.get(keyword), list))
    return num_own + sum(_optional(part) for group in parts for part in group)


_CLOSED = "can be followed with additionalProperties false and without patternProperties alone"
_MAPS = frozenset({"properties", "patternProperties", "$defs", "definitions", "dependentSchemas"})
_VALUES = frozenset({"const", "enum", "default", "examples"})
_STEP = Decimal("1e-12")
#: Between the parts of JSON; bounded, or else a model may go on with blanks for ever.
_BLANKS = "[ \\n\\r\\t]{0,32}"
_MAX_MULTIPLE = 20_000
_MAX_OPTIONAL = 400
