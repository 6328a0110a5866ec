"""JSON schemas in the wrappers that OpenAI's APIs put around them.

Owns the shapes of these wrappers. Never looks into the schema itself.
"""

from __future__ import annotations

from typing import Any

from trident_backend.guided.schema_places import ROOT, Place

#: `json_schema` of a chat completion's `response_format`; with `type`, the `text.format` of a response.
_NAMED = frozenset({"name", "description", "schema", "strict", "type"})
_TYPE = "json_schema"


class ResponseFormatError(Exception):
    """A wrapper without what it should hold; says what is missing."""


def unwrapped(value: Any) -> tuple[Any, Place]:
    """Return the schema that a client's JSON value holds or is, and its place in that value.

    Known are `{"name": ..., "strict": ..., "schema": {...}}` and `{"type": "json_schema", "json_schema": {...}}`, which
    holds one of the former. `strict` changes nothing: every schema is followed strictly.

    Raises:
        ResponseFormatError: it is a wrapper, but holds no schema.
    """
    place = ROOT
    if isinstance(value, dict) and value.get("type") == _TYPE and value.keys() <= {"type", _TYPE}:
        value, place = value.get(_TYPE), place / _TYPE
        if not _is_named(value):
            raise ResponseFormatError(f'{place}: must be an object with a schema, {{"name": ..., "schema": {{...}}}}')
    if not _is_named(value):
        return value, place
    place /= "schema"
    if not isinstance(value["schema"], dict | bool):
        raise ResponseFormatError(f"{place}: must be a JSON schema, which is an object")
    return value["schema"], place


def _is_named(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and "schema" in value
        and value.keys() <= _NAMED
        and value.get("type", _TYPE) == _TYPE
        and all(isinstance(value.get(name), str | None) for name in ("name", "description"))
        and isinstance(value.get("strict"), bool | None)
    )
