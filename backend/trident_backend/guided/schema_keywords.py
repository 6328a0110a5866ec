"""The keywords of JSON Schema: which of them llguidance follows, and which change nothing.

Owns what each keyword may hold. Never looks beyond one schema.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from trident_backend.guided.schema_paths import LIST_KEYWORDS, MAP_KEYWORDS, SCHEMA_KEYWORDS


def is_number(value: Any) -> bool:
    """Return whether a JSON value is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def constrains_nothing(schema: Any) -> bool:
    """Return whether every JSON value is obviously valid under a schema."""
    return schema is True or (isinstance(schema, dict) and not schema.keys() & _CONSTRAINTS)


def is_mistaken(schema: dict[str, Any], *, is_root: bool) -> bool:
    """Return whether an object is hardly a schema: it constrains nothing and has unknown keywords.

    JSON Schema ignores unknown keywords, so an object that is something else would allow every output. Vendors'
    extensions begin with `x-`. Annotations alone make a schema of a part but not of the whole, because many other
    objects have a `title` or a `description` too.
    """
    unknown = {name for name in schema if name not in KNOWN and not name.startswith("x-")}
    if not unknown or schema.keys() & (_CONSTRAINTS | _REFERENCED):
        return False
    return is_root or not schema.keys() & KNOWN


def drop_what_changes_nothing(node: dict[str, Any]) -> None:
    """Delete keywords that mean nothing with the values they have, and that llguidance might refuse.

    A number with a zero fraction becomes an integer where JSON Schema wants an integer. The schema is changed in place.
    """
    for keyword in _COUNTS & node.keys():
        if isinstance(node[keyword], float) and node[keyword].is_integer():
            node[keyword] = int(node[keyword])
    for keyword, types in _ONLY_FOR.items():
        if keyword in node and not _may_be(node, types):
            del node[keyword]
    for keyword, is_neutral in _NEUTRAL:
        if keyword in node and is_neutral(node):
            del node[keyword]


def problem_of(node: dict[str, Any]) -> tuple[str, str] | None:
    """Return the first keyword of a schema that cannot be followed, and why; None if there is none."""
    for keyword, value in node.items():
        if keyword in _UNFOLLOWED:
            return keyword, "cannot be followed; leave it out"
        if keyword in _FORMS and (problem := _FORMS[keyword](value)):
            return keyword, problem
        if keyword in LIST_KEYWORDS and not isinstance(value, list):
            return keyword, "must be a list of schemas"
        if keyword in MAP_KEYWORDS and not isinstance(value, dict):
            return keyword, "must be an object of schemas"
    return None


def _may_be(node: dict[str, Any], kind: str) -> bool:
    types = node.get("type")
    return kind == types if isinstance(types, str) else not isinstance(types, list) or kind in types


def _no_names_needed(node: dict[str, Any], keyword: str) -> bool:
    value = node[keyword]
    return isinstance(value, dict) and all(part == [] or constrains_nothing(part) for part in value.values())


def _any_text(schema: Any) -> bool:
    """Return whether a schema allows every string."""
    if not isinstance(schema, dict):
        return schema is True
    return _may_be(schema, "string") and constrains_nothing({name: schema[name] for name in schema if name != "type"})


def _condition_is_idle(node: dict[str, Any]) -> bool:
    """Return whether the condition changes nothing, whatever its outcome."""
    then = node["if"] is False or constrains_nothing(node.get("then", True))
    return then and (node["if"] is True or constrains_nothing(node.get("else", True)))


def _unknown_format(node: dict[str, Any]) -> bool:
    return isinstance(node["format"], str) and node["format"] not in FORMATS


def _form(check: Callable[[Any], bool], what: str) -> Callable[[Any], str]:
    def problem(value: Any) -> str:
        return "" if check(value) else f"must be {what}, not {_shown(value)}"

    return problem


def _shown(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= _MAX_SHOWN else f"{shown[:_MAX_SHOWN]}..."


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_type(value: Any) -> bool:
    names = value if isinstance(value, list) else [value]
    return bool(names) and all(isinstance(name, str) and name in _TYPES for name in names)


def _is_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


#: Formats that llguidance 1.9 enforces. Any other format is an annotation, as JSON Schema says.
FORMATS = frozenset({
    "date", "date-time", "duration", "email", "hostname", "ipv4", "ipv6", "time", "unknown", "uri", "uuid",
})  # fmt: skip
_TYPES = ("string", "number", "integer", "boolean", "null", "array", "object")
_COUNTS = frozenset({"minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties"})
#: Of these llguidance would write more than the schema allows, so it refuses them.
_UNFOLLOWED = frozenset({
    "$dynamicRef", "$recursiveRef", "contains", "dependencies", "dependentRequired", "dependentSchemas", "else", "if",
    "maxContains", "minContains", "not", "propertyNames", "then", "unevaluatedItems", "unevaluatedProperties",
    "uniqueItems",
})  # fmt: skip
_ANNOTATIONS = frozenset({
    "$comment", "$schema", "$id", "id", "$anchor", "$dynamicAnchor", "$recursiveAnchor", "$vocabulary", "title",
    "description", "default", "examples", "example", "deprecated", "readOnly", "writeOnly", "nullable",
    "contentEncoding", "contentMediaType", "contentSchema", "discriminator", "externalDocs", "xml",
})  # fmt: skip
_REFERENCED = frozenset({"$defs", "definitions"})
_CONSTRAINTS = (
    (SCHEMA_KEYWORDS | LIST_KEYWORDS | MAP_KEYWORDS | _UNFOLLOWED | _COUNTS)
    | {"$ref", "type", "enum", "const", "required", "pattern", "format", "multipleOf"}
    | {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"}
) - _REFERENCED
KNOWN = _CONSTRAINTS | _ANNOTATIONS | _REFERENCED
#: Keyword -> the only type of value that it means anything for.
_ONLY_FOR = {
    "contains": "array", "minContains": "array", "maxContains": "array", "uniqueItems": "array",
    "unevaluatedItems": "array", "dependencies": "object", "dependentRequired": "object",
    "dependentSchemas": "object", "propertyNames": "object", "unevaluatedProperties": "object",
}  # fmt: skip
#: Keyword -> whether it means nothing in a schema, in an order in which the deletion of one counts for later ones.
_NEUTRAL: tuple[tuple[str, Callable[[dict[str, Any]], bool]], ...] = (
    ("$schema", lambda node: "//json-schema.org/" not in str(node["$schema"])),
    ("$dynamicAnchor", lambda _: True),
    ("$recursiveAnchor", lambda _: True),
    ("$vocabulary", lambda _: True),
    ("format", _unknown_format),
    ("uniqueItems", lambda node: node["uniqueItems"] is False),
    ("contains", lambda node: node.get("minContains") == 0 and "maxContains" not in node),
    ("minContains", lambda node: "contains" not in node),
    ("maxContains", lambda node: "contains" not in node),
    ("dependentRequired", lambda node: _no_names_needed(node, "dependentRequired")),
    ("dependentSchemas", lambda node: _no_names_needed(node, "dependentSchemas")),
    ("dependencies", lambda node: _no_names_needed(node, "dependencies")),
    ("propertyNames", lambda node: _any_text(node["propertyNames"])),
    ("not", lambda node: node["not"] is False),
    ("if", _condition_is_idle),
    ("then", lambda node: "if" not in node),
    ("else", lambda node: "if" not in node),
    ("unevaluatedItems", lambda node: constrains_nothing(node["unevaluatedItems"])),
    ("unevaluatedProperties", lambda node: constrains_nothing(node["unevaluatedProperties"])),
)
_FORMS: dict[str, Callable[[Any], str]] = {
    **dict.fromkeys(_COUNTS, _form(_is_count, "a whole number of at least 0")),
    "type": _form(_is_type, f"one of {', '.join(_TYPES)}, or a list of some"),
    "enum": _form(lambda value: isinstance(value, list) and bool(value), "a list of at least one value"),
    "anyOf": _form(lambda value: isinstance(value, list) and bool(value), "a list of at least one schema"),
    "oneOf": _form(lambda value: isinstance(value, list) and bool(value), "a list of at least one schema"),
    "required": _form(_is_names, "a list of names"),
    "minimum": _form(is_number, "a number"),
    "maximum": _form(is_number, "a number"),
    "exclusiveMinimum": _form(lambda value: isinstance(value, bool) or is_number(value), "a number"),
    "exclusiveMaximum": _form(lambda value: isinstance(value, bool) or is_number(value), "a number"),
    "multipleOf": _form(lambda value: is_number(value) and value > 0, "a number above 0"),
    "pattern": _form(_is_text, "a text"),
    "format": _form(_is_text, "a text"),
    "$ref": _form(_is_text, "a text"),
}
_MAX_SHOWN = 60
