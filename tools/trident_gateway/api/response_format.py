"""The form that an answer must have.

Owns `response_format` and vLLM's fields of the same purpose, and what guide follows from them. Never compiles one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, TypeAlias

import msgspec
from msgspec import Meta, Struct

from trident_gateway.api.body import invalid
from trident_gateway.api.sampling_fields import SamplingFields


class TextFormat(Struct, tag_field="type", tag="text", forbid_unknown_fields=True, frozen=True):
    """The form that any text has."""


class JsonObjectFormat(Struct, tag_field="type", tag="json_object", forbid_unknown_fields=True, frozen=True):
    """Any JSON object."""


class NamedSchema(Struct, forbid_unknown_fields=True, frozen=True):
    """A JSON schema with a name. It always holds, whether `strict` or not."""

    name: Annotated[str, Meta(pattern="^[A-Za-z0-9_-]{1,64}$")]
    schema: dict[str, Any] | None = None
    description: str | None = None
    strict: bool | None = None


class JsonSchemaFormat(Struct, tag_field="type", tag="json_schema", forbid_unknown_fields=True, frozen=True):
    """JSON that a schema describes."""

    json_schema: NamedSchema


class StructuralTagFormat(Struct, tag_field="type", tag="structural_tag", forbid_unknown_fields=True, frozen=True):
    """Free text with tags in it whose content is given, as vLLM and SGLang take it."""

    format: dict[str, Any] | None = None
    structures: list[Any] | None = None
    triggers: list[str] | None = None


ResponseFormat: TypeAlias = TextFormat | JsonObjectFormat | JsonSchemaFormat | StructuralTagFormat

_ANY_OBJECT = '{"type":"object"}'


@dataclass(frozen=True)
class Guide:
    """The form that the output must have.

    Args:
        kind: the ensemble's name of the type.
        text: the schema, expression, list or grammar.
        param: the client's field that asked for it.
    """

    kind: str
    text: str
    param: str


def guide_of(fields: SamplingFields, response_format: ResponseFormat | None = None) -> Guide | None:
    """Return the guide that a request asks for; None for free text.

    Raises:
        InvalidRequestError: it asks for two.
    """
    guides = [guide for guide in (_of_format(response_format), *_of_extras(fields)) if guide is not None]
    if len(guides) > 1:
        raise invalid(guides[1].param, f"cannot be given together with '{guides[0].param}'.")
    return guides[0] if guides else None


def schema_guide(schema: Any, param: str) -> Guide:
    """Return the guide of a JSON schema; None stands for any object."""
    return Guide("json_schema", _ANY_OBJECT if schema is None else _text(schema), param)


def _of_format(wanted: ResponseFormat | None) -> Guide | None:
    param = "response_format"
    if isinstance(wanted, JsonObjectFormat):
        return schema_guide(None, param)
    if isinstance(wanted, JsonSchemaFormat):
        return schema_guide(wanted.json_schema.schema, param)
    if isinstance(wanted, StructuralTagFormat):
        raw = msgspec.to_builtins(wanted)
        return Guide("structural_tag", _text({key: value for key, value in raw.items() if value is not None}), param)
    return None


def _of_extras(fields: SamplingFields) -> list[Guide | None]:
    schema = fields.guided_json
    if schema is not None and not isinstance(schema, str):
        schema = _text(schema)
    return [
        None if schema is None else Guide("json_schema", schema, "guided_json"),
        None if fields.guided_regex is None else Guide("regex", fields.guided_regex, "guided_regex"),
        None if fields.guided_choice is None else Guide("choice", _text(fields.guided_choice), "guided_choice"),
        None if fields.guided_grammar is None else Guide("ebnf_grammar", fields.guided_grammar, "guided_grammar"),
    ]  # fmt: skip


def _text(value: Any) -> str:
    return msgspec.json.encode(value).decode()
