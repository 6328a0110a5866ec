"""The checks of JSON schemas before llguidance reads them.

Owns what is refused, narrowed or left out because llguidance 1.9 would allow too much, build an automaton without a
bound, or refuse a keyword that means nothing. A narrowed schema allows fewer outputs, all of them valid. Never changes
the meaning of a schema in any other way.
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
from trident_backend.guided.schema_paths import ROOT, SchemaPath, all_nodes, children, used_nodes


class SchemaError(Exception):
    """A schema that cannot be followed; the message says where and why."""


class CheckedSchema:
    """A schema that llguidance may read.

    Args:
        schema: the schema, which is changed in place.
        path: where the schema is in the JSON that the client sent.

    Raises:
        SchemaError: a part of the schema cannot be followed.
    """

    def __init__(self, schema: dict[str, Any], path: SchemaPath = ROOT) -> None:
        for _, node in all_nodes(schema, path):
            drop_what_changes_nothing(node)
        for where, node in used_nodes(schema, path):
            _check_keywords(where, node, is_root=where is path)
        common = 1
        for where, node in all_nodes(schema, path):
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
                    f"{where}/properties: {count} optional names in one object are too many: at most {_MAX_OPTIONAL}"
                )
        self._schema = schema
        self._path = path

    def text(self) -> str:
        """Return the schema as JSON text for llguidance."""
        return _text(self._schema)

    def located(self, problem: str, problem_with: Callable[[str], str]) -> tuple[SchemaPath, str]:
        """Return the path of the innermost schema that has the problem by itself, and its own problem.

        Args:
            problem: llguidance's message about the whole schema.
            problem_with: returns llguidance's message about a schema as text; empty if there is none. At most
                `_MAX_TRIES` schemas are tried.
        """
        path, node, num_tries = self._path, self._schema, 0
        stores: dict[str, Any] = {name: node[name] for name in ("$schema", "$defs", "definitions") if name in node}
        pending = [*children(path, node)]
        while pending and num_tries < _MAX_TRIES:
            where, child = pending.pop(0)
            if not isinstance(child, dict):
                continue
            num_tries += 1
            found = problem_with(_text({**child, **stores}))
            if found == problem or (_UNSATISFIABLE in found and _UNSATISFIABLE in problem):
                path, problem, pending = where, found, [*children(where, child)]
        return path, problem


def _text(schema: dict[str, Any]) -> str:
    return json.dumps({**schema, "x-guidance": {"whitespace_pattern": _BLANKS}})


def _check_keywords(where: SchemaPath, node: Any, *, is_root: bool) -> None:
    if isinstance(node, bool):
        return
    if not isinstance(node, dict):
        raise SchemaError(f"{where}: must be a schema, which is an object, true or false")
    if is_mistaken(node, is_root=is_root):
        names = ", ".join(name[:_MAX_NAME] for name in [*node][:_MAX_NAMES])
        raise SchemaError(f"{where}: is not a JSON schema: {names} would allow every output; send the schema itself")
    if problem := problem_of(node):
        keyword, what = problem
        raise SchemaError(f"{where / keyword}: {what}")


def _narrow_bounds(node: dict[str, Any]) -> None:
    for exclusive, inclusive, choose in (("exclusiveMinimum", "minimum", max), ("exclusiveMaximum", "maximum", min)):
        if node.get("type") != "integer" and is_number(node.get(exclusive)):
            bound = _inside(node.pop(exclusive), is_lower=choose is max)
            node[inclusive] = choose(node[inclusive], bound) if is_number(node.get(inclusive)) else bound


def _inside(bound: float, *, is_lower: bool) -> float:
    """Return a number slightly inside an exclusive bound, because llguidance 1.9 treats some of these as inclusive."""
    exact = Decimal(repr(bound))
    step = max(abs(exact), Decimal(1)) * _STEP
    return float(exact + step if is_lower else exact - step)


def _digits(multiple: Any) -> int:
    """Return the digits of a multiple without trailing zeros, which bound the states of its automaton.

    llguidance builds this automaton at once.
    """
    if not is_number(multiple) or multiple <= 0:
        return 1
    return int("".join(map(str, Decimal(repr(multiple)).normalize().as_tuple().digits)))


def _check_names(where: SchemaPath, node: Mapping[str, Any]) -> None:
    """Refuse a schema whose meaning depends on the names that have been written before.

    llguidance 1.9 does not remember additional names, so they may be written twice; and it takes a name in `properties`
    that JSON writes with an escape for an additional one.
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
    """Count the optional names of an object, all of which the parser keeps open at once."""
    if not isinstance(node, dict):
        return 0
    names, required = node.get("properties"), node.get("required")
    needed = {name for name in required if isinstance(name, str)} if isinstance(required, list) else set()
    num_own = len(names.keys() - needed) if isinstance(names, dict) else 0
    parts = (node[keyword] for keyword in ("allOf", "anyOf", "oneOf") if isinstance(node.get(keyword), list))
    return num_own + sum(_optional(part) for group in parts for part in group)


_CLOSED = "can only be followed with additionalProperties: false and without patternProperties"
_STEP = Decimal("1e-12")
#: White space between the parts of JSON, bounded because a model might otherwise write nothing else.
_BLANKS = "[ \\n\\r\\t]{0,32}"
_MAX_MULTIPLE = 20_000
_MAX_OPTIONAL = 400
_MAX_TRIES = 64
#: What llguidance says of a schema under which nothing is valid; what it says of an enclosing schema has other words.
_UNSATISFIABLE = "Unsatisfiable schema"
_MAX_NAMES = 4
_MAX_NAME = 40
