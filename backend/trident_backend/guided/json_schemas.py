"""JSON schemas, before llguidance reads them.

Owns what is refused, narrowed or left out here because llguidance 1.9 would allow too much, build without a bound, or
refuse what means nothing. Narrowed means fewer outputs, and all of them valid. Never decides what a schema means
otherwise.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any

from trident_backend.guided.schema_keywords import (
    drop_what_changes_nothing,
    is_mistaken,
    is_number,
    problem_of,
)
from trident_backend.guided.schema_places import ROOT, Place, all_nodes, children, used_nodes


class SchemaError(Exception):
    """The schema cannot be followed; says where and why."""


class CheckedSchema:
    """A schema that llguidance may read.

    Args:
        schema: changed in place.
        place: of the schema in what the client sent.

    Raises:
        SchemaError: a part of it cannot be followed.
    """

    def __init__(self, schema: dict[str, Any], place: Place = ROOT) -> None:
        for _, node in all_nodes(schema, place):
            drop_what_changes_nothing(node)
        for where, node in used_nodes(schema, place):
            _check_keywords(where, node, is_root=where is place)
        common = 1
        for where, node in all_nodes(schema, place):
            _narrow_bounds(node)
            common = math.lcm(common, _digits(node.get("multipleOf", 1)))
            if common > _MAX_MULTIPLE:
                raise SchemaError(
                    f"{where}/multipleOf: {node['multipleOf']} is too large, alone or with others: at most"
                    f" {_MAX_MULTIPLE}"
                )
            _check_names(where, node)
            if (count := _optional(node)) > _MAX_OPTIONAL:
                raise SchemaError(
                    f"{where}/properties: {count} names in one place that are not required are too many: at most"
                    f" {_MAX_OPTIONAL}"
                )
        self._schema = schema
        self._place = place

    def text(self) -> str:
        """Return the schema as JSON text for llguidance."""
        return _text(self._schema)

    def located(self, problem: str, problem_with: Callable[[str], str]) -> tuple[Place, str]:
        """Return the place of the innermost schema that has a problem by itself, and what it says of that one.

        Args:
            problem: what llguidance says of the whole.
            problem_with: what it says of a schema as text; empty if nothing. At most `_MAX_TRIES` are tried.
        """
        place, node, num_tries = self._place, self._schema, 0
        stores: dict[str, Any] = {name: node[name] for name in ("$schema", "$defs", "definitions") if name in node}
        pending = [*children(place, node)]
        while pending and num_tries < _MAX_TRIES:
            where, child = pending.pop(0)
            if not isinstance(child, dict):
                continue
            num_tries += 1
            found = problem_with(_text({**child, **stores}))
            if found == problem or (_UNSATISFIABLE in found and _UNSATISFIABLE in problem):
                place, problem, pending = where, found, [*children(where, child)]
        return place, problem


def _text(schema: dict[str, Any]) -> str:
    return json.dumps({**schema, "x-guidance": {"whitespace_pattern": _BLANKS}})


def _check_keywords(where: Place, node: Any, *, is_root: bool) -> None:
    if isinstance(node, bool):
        return
    if not isinstance(node, dict):
        raise SchemaError(f"{where}: must be a schema, which is an object, true or false")
    if is_mistaken(node, is_root=is_root):
        names = ", ".join(name[:_MAX_NAME] for name in [*node][:_MAX_NAMES])
        raise SchemaError(f"{where}: is no JSON schema: {names} would allow every output; send the schema itself")
    if problem := problem_of(node):
        keyword, what = problem
        raise SchemaError(f"{where / keyword}: {what}")


def _narrow_bounds(node: dict[str, Any]) -> None:
    for exclusive, inclusive, choose in (("exclusiveMinimum", "minimum", max), ("exclusiveMaximum", "maximum", min)):
        if node.get("type") != "integer" and is_number(node.get(exclusive)):
            bound = _inside(node.pop(exclusive), is_lower=choose is max)
            node[inclusive] = choose(node[inclusive], bound) if is_number(node.get(inclusive)) else bound


def _inside(bound: float, *, is_lower: bool) -> float:
    """Return a number a little inside of an exclusive bound: llguidance 1.9 takes some of them for inclusive."""
    exact = Decimal(repr(bound))
    step = max(abs(exact), Decimal(1)) * _STEP
    return float(exact + step if is_lower else exact - step)


def _digits(multiple: Any) -> int:
    """Return the number of states for multiples of n, but for n's powers of ten: the automaton is built at once."""
    if not is_number(multiple) or multiple <= 0:
        return 1
    return int("".join(map(str, Decimal(repr(multiple)).normalize().as_tuple().digits)))


def _check_names(where: Place, node: Mapping[str, Any]) -> None:
    """Refuse what depends on the names that have been written before, which nobody remembers of additional ones.

    So they may be written twice, and llguidance 1.9 takes a name of `properties` that JSON writes with an escape for an
    additional one.
    """
    if node.get("additionalProperties") is False and "patternProperties" not in node:
        return
    names = node.get("properties")
    for name in names if isinstance(names, dict) else ():
        if any(character < " " or character in '"\\\x7f' for character in name):
            raise SchemaError(f"{where}/properties: {name!r} {_CLOSED}")
    if is_number(node.get("minProperties")) and node["minProperties"] > 1:
        raise SchemaError(f"{where}/minProperties: more than 1 {_CLOSED}")


def _optional(node: Any) -> int:
    """Count names that may come first in an object, or after any other: the parser keeps them all open at once."""
    if not isinstance(node, dict):
        return 0
    names, required = node.get("properties"), node.get("required")
    needed = {name for name in required if isinstance(name, str)} if isinstance(required, list) else set()
    num_own = len(names.keys() - needed) if isinstance(names, dict) else 0
    parts = (node[keyword] for keyword in ("allOf", "anyOf", "oneOf") if isinstance(node.get(keyword), list))
    return num_own + sum(_optional(part) for group in parts for part in group)


_CLOSED = "can be followed with additionalProperties false and without patternProperties alone"
_STEP = Decimal("1e-12")
#: Between the parts of JSON; bounded, or else a model may go on with blanks for ever.
_BLANKS = "[ \\n\\r\\t]{0,32}"
_MAX_MULTIPLE = 20_000
_MAX_OPTIONAL = 400
_MAX_TRIES = 64
#: What llguidance says where nothing is valid; of what is around it, it says so in other words.
_UNSATISFIABLE = "Unsatisfiable schema"
_MAX_NAMES = 4
_MAX_NAME = 40
